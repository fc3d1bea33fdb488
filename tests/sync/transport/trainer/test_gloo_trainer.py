"""A whole update between a trainer and workers in one process, by either transport."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sync import RejectedError, SourceError, TransferError
from sync.transport import sealed
from sync.transport.gloo import Membership
from sync.transport.trainer.broadcast_sender import BroadcastSender
from sync.transport.trainer.gloo_trainer import GlooTrainerInitInfo
from sync.transport.trainer.shared_sender import SharedSender
from sync.transport.worker.assembler import Assembler
from sync.transport.worker.memory import HostMemory, MemoryPool, StagingMemoryError
from sync.transport.worker.segments import Segment
from sync.weights.weight_source import ParamMeta, WeightSource
from sync.worker.gloo_receiver import Announcement, GlooReceiver, ReceiverState
from tests.sync.driven_trainer import DrivenTrainer
from tritonlive.wire.rejection import RejectCode

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

Pairs = Iterator[tuple[str, torch.Tensor]]
METAS = [ParamMeta(f"layers.{number}", "float32", (2**18,)) for number in range(24)]  # 1 MiB each: several frames


def tensor(number: int) -> torch.Tensor:
    return torch.full((2**18,), number + 0.5)


class Source(WeightSource):
    """A source that announces METAS and yields the given tensors."""

    def __init__(self, pairs: Callable[[], Pairs]) -> None:
        self._pairs = pairs

    def metadata(self) -> list[ParamMeta]:
        return METAS

    def __iter__(self) -> Pairs:
        return self._pairs()


class ChangedSource(Source):
    """Some of its tensors were changed while they were read."""

    def changed(self) -> list[str]:
        return ["layers.3", "layers.7"]


def in_order() -> Pairs:
    for number, meta in enumerate(METAS):
        yield meta.name, tensor(number)


class Workers:
    """The control client, and the workers behind it."""

    def __init__(self, num_workers: int) -> None:
        self.receivers: list[GlooReceiver] = []
        self.calls: list[str] = []
        self.reject_reasons = [""] * num_workers
        self.failing = ""
        self.init_info: dict[str, Any] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.init_info = init_info
        fields = {key: value for key, value in init_info.items() if key not in ("rank_offset", "keep_previous")}
        for rank in range(1, init_info["world_size"]):
            self.receivers.append(GlooReceiver(Membership(rank=rank, **fields), MemoryPool(2)))

    def start_weight_update(self) -> None:
        self._call("start")
        for receiver in self.receivers:
            receiver.drop()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update")
        assert set(update_info) == {"names", "dtype_names", "shapes"}
        metas = [ParamMeta.from_names(*each) for each in zip(*update_info.values(), strict=True)]
        for receiver, reason in zip(self.receivers, self.reject_reasons, strict=True):
            receiver.announce(Announcement(metas, reason))

    def finish_weight_update(self) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise RuntimeError(f"{name} failed")

    @property
    def states(self) -> set[ReceiverState]:
        return {receiver.state for receiver in self.receivers}


@pytest.fixture(params=["shared memory", "gloo"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    for receiver in made.receivers:
        receiver.close()


@pytest.fixture
def connect(workers: Workers, transport: str) -> Iterator[Callable[..., DrivenTrainer]]:
    made: list[DrivenTrainer] = []

    def start(source: Callable[[], Pairs] = in_order, *, kind: type[Source] = Source, **options: Any) -> DrivenTrainer:
        info = GlooTrainerInitInfo("127.0.0.1", 0, 3, 20.0, shared_memory=transport == "shared memory", **options)
        made.append(DrivenTrainer(info, workers, kind(source)))
        assert made[-1].transport == transport
        return made[-1]

    yield start
    for trainer in made:
        trainer.shutdown()


def assert_staged(workers: Workers) -> None:
    for receiver in workers.receivers:
        update = receiver.take(5)
        assert [name for name, _ in update.tensors] == [meta.name for meta in METAS]
        assert list(update.digests) == METAS
        for number, (name, staged) in enumerate(update.tensors):
            assert torch.equal(staged, tensor(number)), name


def assert_goes_on(trainer: DrivenTrainer, workers: Workers) -> None:
    """The group can be used again."""
    trainer.source = Source(in_order)
    trainer.push()
    assert_staged(workers)


def test_tensors_may_come_in_any_order_from_one_buffer(connect, workers):
    def backwards() -> Pairs:
        buffer = torch.empty(2**18)
        for number in reversed(range(len(METAS))):
            yield METAS[number].name, buffer.fill_(number + 0.5)

    trainer = connect(backwards)
    for _ in range(3):
        trainer.push()
        assert_staged(workers)
    assert workers.calls == ["start", "update", "finish"] * 3


def test_progress_grows_to_all_bytes(connect):
    trainer, seen = connect(), []
    trainer.progress = lambda sent, total: seen.append((sent, total))
    trainer.push()
    total = sum(meta.num_bytes for meta in METAS)
    assert seen[-1] == (total, total)
    assert [sent for sent, _ in seen] == sorted(sent for sent, _ in seen)


# ---- sources that do not yield what they announced ----------------------------------------------------------------


def with_a_stranger() -> Pairs:
    yield from in_order()
    yield "x", torch.zeros(1)


def with_one_twice() -> Pairs:
    yield from in_order()
    yield METAS[4].name, tensor(4)


def with_one_missing() -> Pairs:
    yield from list(in_order())[:-1]


def with_another_dtype() -> Pairs:
    yield METAS[0].name, tensor(0).half()


def with_an_error() -> Pairs:
    yield from list(in_order())[:9]
    raise OSError("the disk is gone")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("source", "kind", "error", "why"),
    [
        (with_a_stranger, Source, SourceError, "x was yielded, but not announced"),
        (with_one_twice, Source, SourceError, r"layers\.4 was yielded twice"),
        (with_one_missing, Source, SourceError, r"announced, but not yielded: layers\.23"),
        (
            with_another_dtype,
            Source,
            SourceError,
            r"layers\.0 was announced as float32\[262144\], but yielded as float16",
        ),
        (with_an_error, Source, OSError, "the disk is gone"),
        (in_order, ChangedSource, TransferError, r"changed while they were read: layers\.3, layers\.7"),
    ],
    ids=["unknown", "twice", "missing", "dtype", "error", "changed"],
)
def test_nothing_is_staged_of_what_the_source_breaks(connect, workers, source, kind, error, why):
    trainer = connect(source, kind=kind)
    with pytest.raises(error, match=why):
        trainer.push()
    assert "finish" not in workers.calls
    assert workers.states == {ReceiverState.READY}
    for receiver in workers.receivers:
        with pytest.raises(TransferError, match=f"the trainer cancelled the update: .*{why}"):
            receiver.take(1)
    assert_goes_on(trainer, workers)


# ---- workers that reject ------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_an_announcement_that_is_not_wanted(connect, workers):
    trainer = connect()
    workers.reject_reasons[1] = "names: not mine"
    with pytest.raises(RejectedError, match="worker 2 does not take the update: names: not mine") as caught:
        trainer.push()
    assert {rank: rejection.code for rank, rejection in caught.value.rejections.items()} == {2: RejectCode.NOT_SERVED}
    with pytest.raises(RejectedError, match="names: not mine"):
        workers.receivers[1].take(1)
    with pytest.raises(TransferError, match="cancelled"):
        workers.receivers[0].take(1)
    workers.reject_reasons[1] = ""
    assert_goes_on(trainer, workers)


@pytest.mark.fault
@pytest.mark.row(25)
def test_nan_is_rejected_with_its_name(connect, workers):
    def broken() -> Pairs:
        for name, each in in_order():
            yield name, each * float("nan") if name in ("layers.2", "layers.20") else each

    trainer = connect(broken)
    with pytest.raises(RejectedError, match=r"worker 1 rejects what arrived: NaN or Inf in layers\.2, ") as caught:
        trainer.push()
    for rejection in caught.value.rejections.values():
        assert (rejection.code, rejection.names) == (RejectCode.NOT_FINITE, ("layers.2", "layers.20"))
    assert len(caught.value.rejections) == 2
    for receiver in workers.receivers:
        with pytest.raises(RejectedError, match=r"NaN or Inf in layers\.2, layers\.20"):
            receiver.take(1)
    assert_goes_on(trainer, workers)


@pytest.mark.fault
@pytest.mark.row(20)
@pytest.mark.parametrize("change", ["a byte", "a part"])
def test_forged_bytes_are_never_staged(connect, workers, monkeypatch, change):
    """Acts like an attacker in the network: sends forged frames with the trainer's digests."""
    for sender in (BroadcastSender, SharedSender):
        send = sender.send

        def forge(self: Any, num_bytes: int, send: Any = send, sender: Any = sender) -> None:
            frame = self._frame.numpy() if sender is BroadcastSender else self._slots[self._num_frames % 4]
            if change == "a byte":
                frame[num_bytes - 100] ^= 1
            else:
                frame[64:68].view("<u4")[0] = 5  # a part of another tensor
            send(self, num_bytes)

        monkeypatch.setattr(sender, "send", forge)
    trainer = connect()
    if change == "a byte":
        with pytest.raises(RejectedError, match="not the bytes that were sent") as caught:
            trainer.push()
        assert {rejection.code for rejection in caught.value.rejections.values()} == {RejectCode.DAMAGED}
    else:
        with pytest.raises(TransferError, match="is gone"):
            trainer.push()
    for receiver in workers.receivers:
        with pytest.raises(TransferError):
            receiver.take(1)


@pytest.mark.fault
def test_too_little_memory_is_said_before_a_byte_is_read(connect, workers, monkeypatch):
    def refuse(*_: Any) -> None:
        raise StagingMemoryError(24 * 2**20)

    def unread() -> Pairs:
        raise AssertionError("the source was read")
        yield

    trainer = connect(unread)
    with monkeypatch.context() as patched:
        for memory in (HostMemory, Segment):
            patched.setattr(memory, "__init__", refuse)
        with pytest.raises(RejectedError, match=r"no memory for 25 MB .*keep_previous=False") as caught:
            trainer.push()
    assert {rejection.code for rejection in caught.value.rejections.values()} == {RejectCode.NO_MEMORY}
    assert_goes_on(trainer, workers)


@pytest.mark.fault
def test_an_update_that_the_replica_drops_meanwhile(connect, workers):
    trainer = connect()

    def drop(sent: int, total: int) -> None:
        if sent * 2 > total:
            workers.receivers[0].drop()

    trainer.progress = drop
    with pytest.raises(RejectedError, match=r"worker 1 .*: the replica dropped the update meanwhile"):
        trainer.push()
    assert workers.states == {ReceiverState.READY}
    with pytest.raises(TransferError, match="cancelled"):
        workers.receivers[1].take(1)
    trainer.progress = None
    assert_goes_on(trainer, workers)


# ---- slow is not stalled ------------------------------------------------------------------------------------------


@pytest.fixture
def slow_allocation(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Each MiB of a segment takes so long."""
    allocate = os.posix_fallocate

    def set_seconds(seconds: float) -> None:
        def slowly(descriptor: int, start: int, length: int) -> None:
            time.sleep(seconds)
            allocate(descriptor, start, length)

        monkeypatch.setattr(sealed, "CHUNK_BYTES", 2**20)
        monkeypatch.setattr(os, "posix_fallocate", slowly)

    return set_seconds


@pytest.mark.parametrize("transport", ["shared memory"], indirect=True)
def test_a_long_allocation_is_progress(connect, workers, slow_allocation):
    """141 GB take a minute: longer than a worker may be silent (p7b)."""
    trainer = connect(stall_timeout_s=0.5)
    slow_allocation(0.1)
    began = time.monotonic()
    trainer.push()
    assert time.monotonic() - began > 2
    assert_staged(workers)


@pytest.mark.fault
@pytest.mark.parametrize("transport", ["shared memory"], indirect=True)
def test_an_allocation_that_stands_still_is_given_up(connect, workers, slow_allocation):
    trainer = connect(stall_timeout_s=0.5)
    slow_allocation(1.5)
    with pytest.raises(TransferError, match=r"worker 1 showed no progress for 0\.5 s"):
        trainer.push()


def test_slow_examination_and_a_slow_source_are_progress(connect, workers, monkeypatch):
    """All takes three times as long as a worker may be silent (p7)."""
    add = Assembler.add

    def slowly(self: Assembler, frame: Any) -> None:
        time.sleep(0.2)
        add(self, frame)

    def hesitant() -> Pairs:
        for number, pair in enumerate(in_order()):
            if number == 12:
                time.sleep(1.5)
            yield pair

    monkeypatch.setattr(Assembler, "add", slowly)
    trainer = connect(hesitant, stall_timeout_s=0.6)
    began = time.monotonic()
    trainer.push()
    assert time.monotonic() - began > 1.8
    assert_staged(workers)


@pytest.mark.fault
def test_a_worker_that_stands_still_is_given_up_by_name(connect, workers, monkeypatch):
    is_over = threading.Event()
    monkeypatch.setattr(Assembler, "add", lambda self, frame: is_over.wait(20))
    trainer = connect(stall_timeout_s=0.6)
    began = time.monotonic()
    with pytest.raises(TransferError, match=r"worker 1 showed no progress for 0\.6 s"):
        trainer.push()
    assert time.monotonic() - began < 5
    is_over.set()
    with pytest.raises(TransferError):
        workers.receivers[0].take(5)


# ---- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("operation", ["start", "update"])
def test_a_control_call_that_fails_ends_the_group(connect, workers, operation):
    """A worker that got the call may have started. Its answers would be mistaken for those to the next update."""
    trainer = connect()
    workers.failing = operation
    with pytest.raises(RuntimeError, match=f"{operation} failed"):
        trainer.push()
    for receiver in workers.receivers:
        receiver.close()
    assert workers.states == {ReceiverState.FAILED}
    workers.failing = ""
    with pytest.raises(TransferError, match="closed"):
        trainer.push()


@pytest.mark.fault
def test_a_shutdown_by_another_thread_ends_a_push(connect, workers):
    def endless() -> Pairs:
        yield from list(in_order())[:5]
        threading.Timer(0.3, trainer.shutdown).start()
        time.sleep(0.5)
        yield from list(in_order())[5:]

    trainer = connect(endless)
    with pytest.raises(TransferError, match="closed"):
        trainer.push()
    deadline = time.monotonic() + 5
    while workers.states != {ReceiverState.FAILED} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers.states == {ReceiverState.FAILED}
    assert all(receiver.reason.startswith("the trainer is gone") for receiver in workers.receivers)


def test_what_is_staged_stays_when_the_trainer_goes(connect, workers):
    """The commit may be under way."""
    trainer = connect()
    trainer.push()
    trainer.shutdown()
    time.sleep(0.6)
    assert workers.states == {ReceiverState.FAILED}
    assert_staged(workers)
    for receiver in workers.receivers:
        with pytest.raises(TransferError, match="the trainer is gone"):
            receiver.take(1)


@pytest.mark.fault
def test_a_replica_that_watches_the_trainers_port_notices_its_end_only(connect, workers):
    """Watches like the model's trainer_watch. Any byte, or the end, of the idle connection means a dead trainer."""
    trainer = connect()
    watch = socket.create_connection((workers.init_info["master_address"], workers.init_info["master_port"]))
    watch.settimeout(0.5)
    trainer.push()
    with pytest.raises(TimeoutError):
        watch.recv(1)
    trainer.shutdown()
    with contextlib.suppress(ConnectionResetError):
        assert watch.recv(1) == b""
    watch.close()


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_stranger_finds_no_rendezvous_to_list_or_join(connect, workers):
    """p9: the group's secret was a key of a store that anybody could list."""
    connect()
    info = workers.init_info
    assert len(bytes.fromhex(info["secret"])) == 32
    with socket.create_connection((info["master_address"], info["master_port"])) as stranger:
        stranger.settimeout(0.5)
        stranger.sendall(bytes(1000))
        with pytest.raises(TimeoutError):
            stranger.recv(1)


def test_a_group_has_a_worker(workers):
    with pytest.raises(ValueError, match="world_size: must be at least 2"):
        DrivenTrainer(GlooTrainerInitInfo("127.0.0.1", 0, 1, 5.0), workers, Source(in_order))
