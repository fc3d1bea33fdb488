"""The protocol of `trl vllm-serve` (TRL up to 1.10) inside vLLM's workers (backend "nccl_trl_legacy", plugin.py).

vLLM's NCCL engine with other roles: the first worker hosts the rendezvous, the trainer is the last rank of the group,
and every tensor takes one broadcast from the trainer and one barrier. openai_frontend/routes/trl_legacy_weights.py
drives it.

It needs a GPU. One push over NCCL has run (docs/gpu.md).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

from sync.errors import TransferError

from . import loading

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup


@dataclass
class TrlLegacyInitInfo(WeightTransferInitInfo):
    """The body of /init_communicator/.

    The first worker listens on `host`:`port`. `world_size` counts the workers and the trainer, which is identified by
    its GPU (tritonlive/backend/weights/lease.py).
    """

    host: str
    port: int
    world_size: int
    client_device_uuid: str


class TrlLegacyWeightTransferEngine(WeightTransferEngine[TrlLegacyInitInfo, NCCLWeightTransferUpdateInfo]):
    """Receives checkpoint-format weights from the group's last rank, and loads them as they arrive."""

    init_info_cls = TrlLegacyInitInfo
    update_info_cls = NCCLWeightTransferUpdateInfo
    supports_draft_weight_update = False

    _communicator: "PyNcclCommunicator | None" = None

    def init_transfer_engine(self, init_info: TrlLegacyInitInfo) -> None:
        """Form the group; returns when the trainer has joined. Leaves a trainer that was connected before."""
        self.shutdown()  # first, because the old rendezvous may hold the port
        roles = NCCLWeightTransferInitInfo(
            master_address=init_info.host,
            master_port=init_info.port,
            rank_offset=0,
            world_size=init_info.world_size,
        )
        communicator = worker_init_process_group(roles, self.parallel_config)
        if communicator.disabled:  # its broadcasts would silently do nothing
            raise TransferError("nccl_trl_legacy: NCCL is not available in this worker")
        self._communicator = communicator

    def start_weight_update(self) -> None:
        loading.begin(self.model, self.model_config)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive and load tensors, in the given order. Raises RuntimeError when the trainer does not take part."""
        if self._communicator is None:
            raise TransferError("nccl_trl_legacy: no trainer is connected; call init_weight_transfer_engine first")
        trainer = self._communicator.world_size - 1
        group: StatelessProcessGroup = self._communicator.group  # ty: ignore[invalid-assignment]
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            self._communicator.broadcast(weight, src=trainer)
            group.barrier()
            loading.load_part(self.model, [(name, weight)])

    def finish_weight_update(self) -> None:
        """End the load. Raises TransferError when a layer got no tensor: the protocol has no other check."""
        try:
            loading.check_complete(self.model)
        finally:
            loading.end(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.destroy()
