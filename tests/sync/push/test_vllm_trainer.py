"""vLLM's trainer engines as far as they run without a GPU: metadata, packing, joining, refusing and giving up."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import pytest
import torch
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import (
    DEFAULT_PACKED_BUFFER_SIZE_BYTES,
    pack_tensors,
    unpack_tensor,
)

from sync.control.fleet import OnFailure
from sync.deadline import Deadline, spawn
from sync.errors import ConflictError, DeadlineError, SyncError, TransferError
from sync.push import vllm_trainer as module
from sync.push.push_context import PushContext
from sync.push.vllm_trainer import (
    EngineClient,
    JsonHandlesClient,
    NcclTrainer,
    SingleRankIpcEngine,
    packed_buffer_bytes,
    vllm_trainer,
)
from sync.transport.progress import Progress
from sync.weights.aligned_source import aligned
from sync.weights.check import FittedSource, ServedModel
from sync.weights.device_source import DeviceSource, gpu_problem, require_gpu
from sync.weights.sources import TensorSource
from sync.weights.weight_source import ParamMeta, WeightSource

CPU = torch.device("cpu")


class NotifyingFleet:
    """`WorkerCall` and `FleetUpdate` as a trainer uses them.

    Its replicas' workers are threads that join as vLLM's do, or refuse.
    """

    def __init__(self, replicas: dict[str, str], seconds: float = 30.0) -> None:
        self.replicas = replicas  # what each does: "join", "refuse" (after a while), "stay away"
        self.world_size = len(replicas)
        self.deadline = Deadline(seconds)
        self.context = PushContext("v1", "keep", self.deadline)
        self.seconds: dict[str, float] = {}
        self.ids: list[Any] = []
        self.calls: list[str] = []
        self.has_joined = threading.Event()
        self.update_error: SyncError | None = None
        self.released = threading.Event()

    def init_weight_transfer_engine(self, init_info: dict[str, Any], on_failure: OnFailure | None = None) -> None:
        """Raises the first replica's error, in their order, when all have answered: as `Fleet.each`."""

        def start(rank: int, name: str) -> "Future[None]":
            return spawn(lambda: self._init(init_info, rank, name, on_failure), name)

        futures = [start(rank, name) for rank, name in self._ranked()]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for other in errors[1:]:
            errors[0].add_note(str(other))
        if errors:
            raise errors[0]

    def start_weight_update(self) -> None:
        self.calls.append("start_weight_update")

    def update_weights(self, _update_info: dict[str, Any], on_failure: OnFailure | None = None) -> None:
        self.calls.append("update_weights")
        if self.update_error is None:
            return
        if on_failure is not None:
            on_failure(self.update_error)
        self.released.wait(20)  # another replica's workers are in the broadcast
        raise self.update_error

    def finish_weight_update(self, _weight_version: str | None = None) -> None:
        self.calls.append("finish_weight_update")

    def _ranked(self) -> list[tuple[int, str]]:
        return list(enumerate(self.replicas, 1))

    def _init(self, info: dict[str, Any], rank: int, name: str, on_failure: OnFailure | None) -> None:
        began = time.monotonic()
        try:
            self._behave(info, rank, name)
        except SyncError as error:
            if on_failure is not None:
                on_failure(error)
            raise
        finally:
            self.seconds[name] = time.monotonic() - began

    def _behave(self, info: dict[str, Any], rank: int, name: str) -> None:
        if self.replicas[name] == "refuse":
            self.has_joined.wait(5)
            raise ConflictError(name, "init_weight_transfer_engine", "another trainer is connected")
        if self.replicas[name] == "stay away":
            time.sleep(self.deadline.remaining(name))
            raise DeadlineError(f"{name}: no answer")
        try:
            group = StatelessProcessGroup.create(info["master_address"], info["master_port"], rank, info["world_size"])
            self.has_joined.set()
            self.ids.append(group.broadcast_obj(None, src=0))
        except Exception as error:
            raise ConflictError(name, "init_weight_transfer_engine", f"the engine says {error}") from None


class Communicator:
    """Instead of vLLM's: there is no NCCL here."""

    def __init__(self, group: StatelessProcessGroup) -> None:
        group.broadcast_obj("the id", src=0)
        self.is_destroyed = threading.Event()

    def destroy(self) -> None:
        self.is_destroyed.set()
        time.sleep(5)  # as vLLM's, when NCCL does not let go


@pytest.fixture
def _gpu(monkeypatch) -> None:
    monkeypatch.setattr(module, "require_gpu", lambda backend: None)
    monkeypatch.setattr(module, "create_communicator", Communicator)


def connect(fleet: NotifyingFleet, source: WeightSource) -> NcclTrainer:
    trainer = vllm_trainer("nccl", "127.0.0.1", 0, fleet, source)  # ty: ignore[invalid-argument-type]
    assert isinstance(trainer, NcclTrainer)
    return trainer


def send(trainer: NcclTrainer, fleet: Any, source: WeightSource, progress: Progress | None = None) -> None:
    trainer.send_weights(fleet, source, progress)


@pytest.fixture
def source(weights) -> WeightSource:
    served = {name: tensor for name, tensor in weights.items() if name != "model.layers.1.half"}
    metas = [ParamMeta.of(*pair) for pair in served.items()]
    model = ServedModel("replica", {meta.name: meta for meta in metas}, unloaded=["model.layers.1.half"])
    return FittedSource(TensorSource(weights), model, metas)


# ---- our sources in vLLM's engines ------------------------------------------------------------------------------


def test_our_metadata_is_what_vllms_engine_compares_and_sends(source):
    metas: Any = source.metadata()
    vllm_source: Any = source
    pairs = list(NCCLTrainerWeightTransferEngine._checked_iter(vllm_source, metas))
    assert [name for name, _ in pairs] == [meta.name for meta in metas]
    # As NCCLTrainerWeightTransferEngine.send_weights makes it.
    info = NCCLWeightTransferUpdateInfo(
        names=[meta.name for meta in metas],
        dtype_names=[str(meta.dtype).split(".")[-1] for meta in metas],
        shapes=[list(meta.shape) for meta in metas],
    )
    assert info.dtype_names == [meta.dtype_name for meta in metas]
    engine = NCCLWeightTransferEngine.__new__(NCCLWeightTransferEngine)
    assert engine.parse_update_info(asdict(info)) == info


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"b": torch.zeros(3)}, "disagrees with iteration at index 1"),
        ({"b": torch.zeros(2, dtype=torch.float64)}, "disagrees with iteration at index 1"),
        ({"c": torch.zeros(2)}, "yielded more parameters"),
    ],
)
def test_vllms_engine_sees_a_source_that_yields_something_else(changed, sentence):
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2)}
    declared: Any = TensorSource(tensors).metadata()
    yielded: Any = TensorSource(tensors | changed)
    with pytest.raises(ValueError, match=sentence):
        list(NCCLTrainerWeightTransferEngine._checked_iter(yielded, declared))


def test_what_is_packed_for_the_way_is_what_a_worker_unpacks(source, weights):
    """Scalars, empty tensors and every dtype of the checkpoint, through vLLM's own packing, which does not align."""
    pairs = iter(DeviceSource(aligned(source), CPU))
    chunk = pack_tensors(pairs, lambda item: item[1], DEFAULT_PACKED_BUFFER_SIZE_BYTES)
    assert chunk is not None
    arrived = unpack_tensor(chunk.packed_tensor, chunk.names, chunk.shapes, chunk.dtypes, chunk.tensor_sizes)
    assert {name for name, _ in arrived} == {meta.name for meta in source.metadata()}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in arrived)


def test_a_buffer_holds_the_largest_tensor():
    class Large(TensorSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta("small", "bfloat16", (8,)), ParamMeta("embedding", "bfloat16", (152064, 3584))]

    assert packed_buffer_bytes(TensorSource({"a": torch.zeros(2)})) == DEFAULT_PACKED_BUFFER_SIZE_BYTES
    assert packed_buffer_bytes(Large({})) == 152064 * 3584 * 2 > DEFAULT_PACKED_BUFFER_SIZE_BYTES


# ---- tensors on their way to a GPU ------------------------------------------------------------------------------


def test_tensors_are_moved_one_at_a_time(weights):
    """On the "meta" device, for want of another: every one arrives there, and is moved when it is its turn."""
    read: list[str] = []
    sent: list[int] = []

    class Noting(TensorSource):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().__iter__():
                read.append(name)
                yield name, tensor

    moved = DeviceSource(Noting(weights), torch.device("meta"), sent.append)
    assert moved.metadata() == TensorSource(weights).metadata()
    for index, (name, tensor) in enumerate(moved):
        assert (name, tensor.device.type) == (list(weights)[index], "meta")
        assert (len(read), len(sent)) == (index + 1, index)
    assert sent[-1] == sum(tensor.nbytes for tensor in weights.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_a_machine_without_a_gpu_is_refused_before_a_replica_is_asked(backend, source):
    fleet: Any = NotifyingFleet({"http://a": "join"})
    with pytest.raises(TransferError, match=rf"backend '{backend}' sends from a GPU.*--backend gloo"):
        vllm_trainer(backend, "127.0.0.1", 0, fleet, source)
    assert (fleet.calls, fleet.seconds) == ([], {})


def test_gloo_needs_no_gpu():
    require_gpu("gloo")
    assert gpu_problem("gloo") is None


# ---- joining ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_gpu")
def test_all_workers_join(source):
    fleet = NotifyingFleet({"http://a": "join", "http://b": "join"})
    trainer = connect(fleet, source)
    assert fleet.ids == ["the id", "the id"]
    assert trainer.transport == "nccl"


@pytest.mark.usefixtures("_gpu")
def test_when_one_replica_refuses_the_others_are_released_at_once(source):
    fleet = NotifyingFleet({"http://a": "join", "http://b": "refuse", "http://c": "join"})
    began = time.monotonic()
    with pytest.raises(ConflictError, match=r"http://b: .*another trainer is connected") as caught:
        connect(fleet, source)
    assert time.monotonic() - began < 5
    assert fleet.seconds.keys() == fleet.replicas.keys()
    assert max(fleet.seconds.values()) < 5
    assert fleet.ids == []
    # Errors of the released ranks are notes, because they are not the cause.
    assert [note.split(": ")[0] for note in caught.value.__notes__] == ["http://a", "http://c"]


@pytest.mark.usefixtures("_gpu")
def test_when_one_replica_does_not_answer_the_others_are_released_by_the_deadline(source):
    fleet = NotifyingFleet({"http://a": "join", "http://b": "stay away"}, seconds=1.0)
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        connect(fleet, source)
    assert time.monotonic() - began < 6
    assert fleet.seconds["http://a"] < 5


@pytest.mark.usefixtures("_gpu")
def test_a_communicator_that_cannot_be_made_releases_the_workers(source, monkeypatch):
    def fails(_group: StatelessProcessGroup) -> None:
        raise RuntimeError("NCCL error: unhandled system error")

    monkeypatch.setattr(module, "create_communicator", fails)
    fleet = NotifyingFleet({"http://a": "join", "http://b": "join"})
    with pytest.raises(RuntimeError, match="NCCL error"):
        connect(fleet, source)
    assert (fleet.ids, max(fleet.seconds.values()) < 5) == ([], True)


# ---- sending ----------------------------------------------------------------------------------------------------


class Engine:
    """Replaces vLLM's broadcast. It ends when all replicas take part, or when the communicator is destroyed."""

    def __init__(self, client: EngineClient, communicator: Communicator, sees: Callable[[str, Any], None]) -> None:
        self.client = client
        self.model_update_group: Communicator | None = communicator
        self.source: Any = None
        self._sees = sees

    def send_weights(self) -> None:
        communicator = self.model_update_group
        assert communicator is not None
        self.client.start_weight_update()
        receiving = spawn(lambda: self.client.update_weights({}), "vllm-update")
        for name, tensor in self.source:
            self._sees(name, tensor)
        fleet: Any = self.client._update
        if fleet.update_error is not None:
            communicator.is_destroyed.wait(20)
        else:
            receiving.result(5)
        self.client.finish_weight_update()


@pytest.fixture
def sending(source, monkeypatch, _gpu) -> tuple[NotifyingFleet, NcclTrainer, dict[str, Any]]:
    """A trainer that is connected to two replicas, and what its engine has read."""
    monkeypatch.setattr(module, "current_gpu", lambda: torch.device("meta"))
    fleet, read = NotifyingFleet({"http://a": "join", "http://b": "join"}), {}
    trainer = connect(fleet, source)
    trainer._engine = Engine(trainer._client, trainer._engine.model_update_group, read.__setitem__)
    return fleet, trainer, read


def test_the_engine_reads_tensors_on_the_gpu_and_progress_counts_them(sending, source):
    fleet, trainer, read = sending
    seen: list[tuple[int, int]] = []
    send(trainer, fleet, source, lambda sent, total: seen.append((sent, total)))
    assert {name: str(tensor.device) for name, tensor in read.items()} == dict.fromkeys(
        [meta.name for meta in source.metadata()], "meta"
    )
    assert len(seen) == len(read)
    assert seen[-1] == (source.num_bytes, source.num_bytes)
    assert fleet.calls == ["start_weight_update", "update_weights", "finish_weight_update"]


def test_a_replica_that_does_not_take_the_weights_ends_the_push_at_once_and_nothing_commits(sending, source):
    fleet, trainer, _ = sending
    fleet.update_error = ConflictError("http://b", "update_weights", "the engine is gone")
    communicator, threads = trainer._engine.model_update_group, set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(ConflictError, match="the engine is gone"):
        send(trainer, fleet, source)
    assert time.monotonic() - began < 2
    (stuck,) = [thread for thread in set(threading.enumerate()) - threads if thread.name == "nccl-send"]
    trainer.abort()
    assert communicator.is_destroyed.wait(5)
    stuck.join(5)
    assert not stuck.is_alive()
    assert fleet.calls == ["start_weight_update", "update_weights"]
    fleet.released.set()


# ---- giving up --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_gpu")
def test_abort_returns_at_once_aborts_the_communicator_and_lets_nothing_commit(source):
    fleet = NotifyingFleet({"http://a": "join"})
    trainer = connect(fleet, source)
    update: Any = fleet
    trainer._client.begin(update)
    communicator = trainer._engine.model_update_group
    began = time.monotonic()
    trainer.abort()
    assert time.monotonic() - began < 4, "destroy takes 5 s"
    assert communicator.is_destroyed.wait(5)
    # The engine's thread, released by the abort, goes on as if its broadcast had ended well.
    for operation in ("start_weight_update", "finish_weight_update"):
        with pytest.raises(TransferError, match="given up"):
            getattr(trainer._engine.client, operation)()
    assert fleet.calls == []
    trainer.abort()  # once more does no harm


def test_the_client_is_what_vllms_engines_expect():
    fleet: Any = NotifyingFleet({})
    client = EngineClient(fleet)
    with pytest.raises(TransferError, match="no push has begun"):
        client.start_weight_update()
    client.begin(fleet)
    assert isinstance(client, VLLMWeightSyncClient)
    assert isinstance(JsonHandlesClient(client), VLLMWeightSyncClient)
    client.start_weight_update()
    client.update_weights({})
    client.finish_weight_update()
    assert fleet.calls == ["start_weight_update", "update_weights", "finish_weight_update"]


def test_an_ipc_push_of_rank_0_does_not_wait_for_the_trainers_other_ranks(monkeypatch):
    """vLLM's gathers over all of torch.distributed, where only rank 0 would come."""
    for name in ("_all_gather_and_merge_handles", "_post_send_sync"):
        assert name in vars(IPCTrainerWeightTransferEngine)  # what is replaced is still what vLLM calls
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    collected: list[bool] = []
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: collected.append(True))
    engine = SingleRankIpcEngine.__new__(SingleRankIpcEngine)
    assert engine._all_gather_and_merge_handles([{"GPU-1": (1,)}]) == [{"GPU-1": (1,)}]
    engine._post_send_sync()
    assert collected == [True]
