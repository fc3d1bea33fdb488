"""NCCL and CUDA IPC pushes: vLLM's own trainer engines, driven through our control client.

It needs vLLM, and a GPU in the trainer's process. Connecting, refusals and giving up are tested without a GPU; the
transfer itself and the abort of a communicator are not (docs/gpu.md lists what has run).
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from sync.deadline import Deadline, spawn, wait
from sync.errors import SyncError, TransferError
from sync.transport.ipc_handles import encode_handles
from sync.transport.trainer.nccl_rendezvous import NcclRendezvous
from sync.weights.aligned_source import aligned
from sync.weights.device_source import DeviceSource, current_gpu, require_gpu
from sync.weights.weight_source import WeightSource

from .caller_stream import CallerStream
from .fleet_group import WorkerCall
from .fleet_update import FleetUpdate

if TYPE_CHECKING:
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.distributed.weight_transfer import WeightSource as VllmSource

    from sync.transport.progress import Progress

# How long to wait for the replicas' answers after a cancelled rendezvous.
CALLED_OFF_TIMEOUT_S = 10.0


def vllm_trainer(
    backend: str, master_address: str, master_port: int, workers: WorkerCall, source: WeightSource
) -> "VllmTrainer":
    """A connected trainer for backend "nccl" or "ipc".

    Raises TransferError on a machine without a GPU, before any replica is asked; ControlError, DeadlineError.
    """
    require_gpu(backend)
    if backend == "ipc":
        return IpcTrainer(workers, source)
    return NcclTrainer(workers, source, master_address, master_port)


class VllmTrainer:
    """One of vLLM's trainer engines as a push's `TrainerEngine`."""

    transport = ""

    def __init__(self, workers: WorkerCall) -> None:
        self._client = EngineClient(workers)
        self._engine: Any = None

    def send_weights(self, client: FleetUpdate, source: WeightSource, progress: "Progress | None" = None) -> None:
        """One update: start, transfer, finish."""
        self._client.begin(client)
        self._run_engine(source, progress)

    def _run_engine(self, source: WeightSource, progress: "Progress | None") -> None:
        total = sum(meta.num_bytes for meta in source.metadata())

        def on_sent(num_bytes: int) -> None:
            self._client.require_running()
            if progress is not None:
                progress(num_bytes, total)

        self._engine.source = DeviceSource(aligned(source), current_gpu(), on_sent)
        self._engine.send_weights()

    def shutdown(self) -> None:
        """Leave the group after pushes that succeeded."""
        self._engine.shutdown()

    def abort(self) -> None:
        """Give up after a failure. Returns at once, even while the engine still runs in another thread.

        The engine cannot commit afterwards.
        """
        self._client.is_over = True


class NcclTrainer(VllmTrainer):
    """Rank 0 of an NCCL group with every worker of every replica."""

    transport = "nccl"

    def __init__(self, workers: WorkerCall, source: WeightSource, master_address: str, master_port: int) -> None:
        """Call the workers in and form the group.

        When one replica refuses, the rendezvous is cancelled for the other replicas' workers: otherwise these and their
        engines would wait 300 s.
        """
        super().__init__(workers)
        buffer_bytes = packed_buffer_bytes(source)
        self._engine = NCCLTrainerWeightTransferEngine(
            client=cast("Any", self._client),
            source=cast("VllmSource", source),
            packed=True,
            packed_buffer_size_bytes=buffer_bytes,
        )
        rendezvous = NcclRendezvous(master_address, master_port, workers.world_size + 1)
        info = NCCLWeightTransferInitInfo(
            master_address=master_address,
            master_port=rendezvous.port,
            rank_offset=1,
            world_size=rendezvous.world_size,
            packed=True,
            packed_buffer_size_bytes=buffer_bytes,
            packed_num_buffers=self._engine.packed_num_buffers,
        )
        refusal: Future[None] = Future()
        joining = spawn(
            lambda: self._client.init_weight_transfer_engine(worker_init_payload(info), refusal), "nccl-init"
        )
        joining.add_done_callback(lambda future: _set_first(refusal, future.exception()))
        try:
            group = rendezvous.wait(workers.deadline, refusal)
            self._engine.model_update_group = create_communicator(group)
            wait(joining, workers.deadline, "nccl: init_weight_transfer_engine")
        except BaseException as error:
            rendezvous.call_off()
            _note_others(error, joining)
            raise
        rendezvous.close()

    def send_weights(self, client: FleetUpdate, source: WeightSource, progress: "Progress | None" = None) -> None:
        """See the base class. Ends as soon as one replica refuses the weights.

        The broadcast would wait for that replica's workers, and so would those of the others. `abort` ends it.
        """
        refusal = self._client.begin(client)
        send = CallerStream.capture().bound(lambda: self._run_engine(source, progress))
        wait(spawn(send, "nccl-send"), client.context.deadline, "nccl: the transfer", refusal)

    def abort(self) -> None:
        """See the base class. Aborts the communicator, which ends the wait of a stuck thread.

        vLLM's `destroy` runs ncclCommAbort in a separate thread, and waits up to 5 s for it. Not run on a GPU yet.
        """
        super().abort()
        communicator, self._engine.model_update_group = self._engine.model_update_group, None
        if communicator is not None:
            spawn(communicator.destroy, "nccl-abort")


class IpcTrainer(VllmTrainer):
    """The trainer of a replica whose only worker is on the same GPU."""

    transport = "ipc"

    def __init__(self, workers: WorkerCall, source: WeightSource) -> None:
        super().__init__(workers)
        self._engine = SingleRankIpcEngine(
            client=cast("Any", JsonHandlesClient(self._client)),
            source=cast("VllmSource", source),
            # One buffer and one handle per chunk, instead of a handle per tensor.
            packed=True,
            packed_buffer_size_bytes=packed_buffer_bytes(source),
        )
        self._client.init_weight_transfer_engine({"packed": True})


class SingleRankIpcEngine(IPCTrainerWeightTransferEngine):
    """Sends this rank's handles only.

    vLLM's engine gathers the handles of all ranks of torch.distributed, as pickles. In our pushes only rank 0 sends;
    the other ranks take no part in that collective (collective_push.py).
    """

    def _all_gather_and_merge_handles(self, handles: list[dict[str, tuple]]) -> list[dict[str, tuple]]:
        return handles

    @staticmethod
    def _post_send_sync() -> None:
        torch.cuda.ipc_collect()


class EngineClient:
    """vLLM's `VLLMWeightSyncClient` for vLLM's engines, over the fleet. Every call is refused after `is_over`.

    An engine whose communicator was aborted runs on: its broadcast just returns.
    """

    def __init__(self, workers: WorkerCall) -> None:
        self.is_over = False
        self._workers = workers
        self._update: FleetUpdate | None = None
        self._refusal: Future[None] = Future()

    def begin(self, update: FleetUpdate) -> "Future[None]":
        """Direct the calls that follow to this update.

        The result gets the error of the first replica that refuses the weights, before the others have answered. A
        failed commit is no refusal: there the answers of all replicas count together.
        """
        self._update, self._refusal = update, Future()
        return self._refusal

    def init_weight_transfer_engine(self, init_info: dict[str, Any], refusal: "Future[None] | None" = None) -> None:
        """`refusal` gets the error of the first replica that refuses, before the others have answered."""
        self.require_running()
        self._workers.init_weight_transfer_engine(init_info, _setter_of(refusal or Future()))

    def start_weight_update(self) -> None:
        self._running_update.start_weight_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._running_update.update_weights(update_info, _setter_of(self._refusal))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._running_update.finish_weight_update(weight_version)

    @property
    def _running_update(self) -> FleetUpdate:
        self.require_running()
        if self._update is None:
            raise TransferError("no push has begun")
        return self._update

    def require_running(self) -> None:
        if self.is_over:
            raise TransferError("the push was given up")


class JsonHandlesClient:
    """The client of vLLM's IPC engine. It sends handles as JSON, where vLLM's own HTTP client would pickle them."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        if isinstance(update_info, list):  # vLLM's IPC engine sends one object for all ranks
            raise TypeError("update_info: expected one object for all ranks")
        self._client.update_weights(update_info | {"ipc_handles": encode_handles(update_info["ipc_handles"])})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        torch.accelerator.synchronize()
        self._client.finish_weight_update(weight_version)


def packed_buffer_bytes(source: WeightSource) -> int:
    """vLLM's size of a packed buffer, or the largest tensor's size: vLLM's IPC engine refuses larger tensors."""
    return max([DEFAULT_PACKED_BUFFER_SIZE_BYTES, *(meta.num_bytes for meta in source.metadata())])


def create_communicator(group: "StatelessProcessGroup") -> Any:
    """vLLM's NCCL communicator on this thread's GPU.

    Blocks in NCCL until all ranks of the group call it. It cannot be aborted: there is no communicator yet.
    """
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.utils.nccl import unpinned_nccl_env

    with unpinned_nccl_env():
        return PyNcclCommunicator(group, device=torch.accelerator.current_device_index())


def _setter_of(failure: "Future[None]") -> Callable[[BaseException], None]:
    return lambda error: _set_first(failure, error)


def _set_first(failure: "Future[None]", error: BaseException | None) -> None:
    if error is not None and not failure.done():
        failure.set_exception(error)


def _note_others(error: BaseException, joining: "Future[None]") -> None:
    """Wait until every replica has answered, and add their other errors to `error` as notes."""
    try:
        wait(joining, Deadline(CALLED_OFF_TIMEOUT_S), "nccl: init_weight_transfer_engine after it was cancelled")
    except SyncError as other:
        for text in [str(other), *getattr(other, "__notes__", ())]:
            if text != str(error):
                error.add_note(text)
