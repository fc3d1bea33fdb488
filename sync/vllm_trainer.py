"""NCCL and CUDA IPC pushes: vLLM's own trainer engines, driven through our control client.

Needs vLLM and a GPU in the trainer's process; docs/gpu.md says what has run of it. A collective of NCCL cannot be
interrupted: after a deadline its thread is left behind.
"""

import socket
from typing import TYPE_CHECKING, Any, cast

import torch

from .fleet import Fleet
from .ipc_handles import encode_handles
from .sources import WeightSource

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer import WeightSource as VllmSource


def vllm_trainer(backend: str, master_address: str, master_port: int, fleet: Fleet, source: WeightSource) -> Any:
    """A connected vLLM TrainerWeightTransferEngine for backend "nccl" or "ipc"."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    vllm_source = cast("VllmSource", source)  # the same methods, as far as these engines call them
    if backend == "ipc":
        # Packed: one buffer and one handle per chunk, instead of a handle per tensor.
        return WeightTransferTrainerFactory.trainer_init(
            IPCTrainerInitInfo(rank=0, packed=True), client=_JsonHandles(fleet), source=vllm_source
        )
    port = master_port or _free_port(master_address)
    info = NCCLTrainerInitInfo(master_address, port, fleet.world_size + 1, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=fleet, source=vllm_source)


class _JsonHandles:
    """The fleet for vLLM's IPC engine: its handles leave as JSON, where vLLM's own HTTP client would pickle them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._fleet.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._fleet.start_weight_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        if isinstance(update_info, list):  # vLLM's IPC engine sends one for all ranks
            raise TypeError("update_info: expected one object for all ranks")
        self._fleet.update_weights(update_info | {"ipc_handles": encode_handles(update_info["ipc_handles"])})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        torch.accelerator.synchronize()
        self._fleet.finish_weight_update(weight_version)


def _free_port(address: str) -> int:
    family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(place)
        return probe.getsockname()[1]
