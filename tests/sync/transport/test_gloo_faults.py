"""Trainers and workers that die, hang, or never come: real processes, real signals, real sockets."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from sync import SyncError, TransferError, WeightSync
from sync.transport.gloo import Membership
from sync.transport.messages import MessageCode
from sync.transport.trainer.handshake import TrainerHandshake
from sync.transport.worker.memory import MemoryPool
from sync.worker.gloo_receiver import GlooReceiver, ReceiverState
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY
from tests.sync.trainer_process import NUM_ELEMENTS, NUM_TENSORS, weights

SECRET = "ab" * 32
TRAINER = Path(__file__).parents[1] / "trainer_process.py"
TRANSPORTS = pytest.mark.parametrize("transport", ["shared", "broadcast"])


@pytest.fixture
def replica():
    zeros = {f"layers.{number}": torch.zeros(NUM_ELEMENTS) for number in range(NUM_TENSORS)}
    with Replica(zeros) as running:
        yield running


@pytest.fixture
def start_trainer(replica):
    started: list[subprocess.Popen] = []

    def start(mode: str, transport: str = "shared") -> subprocess.Popen:
        command = [sys.executable, str(TRAINER), replica.address, KEY, mode, transport]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, timeout: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def another_trainer_succeeds(replica: Replica) -> None:
    replica.state = "serving"  # what the model does when the receiver has failed
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as client:
        assert client.push(weights()).version == "v1"
    assert torch.equal(replica.tensors["layers.5"], torch.full((NUM_ELEMENTS,), 5.0))


@pytest.mark.fault
@TRANSPORTS
@pytest.mark.parametrize("mode", ["kill", "hang"])
def test_a_trainer_killed_in_the_middle_of_a_transfer(replica, start_trainer, mode, transport):
    trainer = start_trainer(mode, transport)
    if mode == "hang":  # waits between two messages
        assert trainer.stdout.readline() == "halfway\n"
        trainer.kill()
    trainer.wait(60)
    receiver = replica.receiver
    assert trainer.returncode == -signal.SIGKILL
    wait_for(lambda: receiver.state is ReceiverState.FAILED, 5)
    assert receiver.reason
    with pytest.raises(TransferError):
        receiver.take(1)
    assert not any(tensor.any() for tensor in replica.tensors.values())
    began = time.monotonic()
    receiver.close()
    assert time.monotonic() - began < 3
    another_trainer_succeeds(replica)


@pytest.mark.fault
def test_a_trainer_killed_between_pushes(replica, start_trainer):
    trainer = start_trainer("idle")
    assert trainer.stdout.readline() == "pushed\n"
    receiver = replica.receiver
    replica.tensors = {name: tensor * 0 for name, tensor in replica.tensors.items()}
    replica.version = "default"
    trainer.kill()
    wait_for(lambda: receiver.state is ReceiverState.FAILED, 5)
    assert "the trainer is gone" in receiver.reason
    another_trainer_succeeds(replica)


@pytest.mark.fault
@TRANSPORTS
def test_ctrl_c_gives_up_cleanly(replica, start_trainer, transport):
    trainer = start_trainer("interrupt", transport)
    assert trainer.stdout.readline() == "halfway\n"
    trainer.send_signal(signal.SIGINT)
    trainer.wait(10)
    assert trainer.returncode == -signal.SIGINT or trainer.returncode == 1
    assert replica.calls.count("abort_weight_update") >= 1
    assert replica.state == "serving"
    another_trainer_succeeds(replica)


@pytest.mark.fault
@TRANSPORTS
def test_a_worker_that_goes_in_the_middle_of_a_transfer(replica, transport):
    def leave(sent: int, total: int) -> None:
        if sent * 2 > total and replica.receivers:
            replica.receivers.pop().close()

    began = time.monotonic()
    is_shared = transport == "shared"
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20, shared_memory=is_shared) as client:
        with pytest.raises(TransferError):
            client.push(weights(), progress=leave)
        assert client.push(weights()).version == "v1"
    assert time.monotonic() - began < 20


# ---- joining ------------------------------------------------------------------------------------------------------


def membership(port: int, secret: str = SECRET, timeout_s: float = 2.0) -> Membership:
    return Membership("127.0.0.1", port, 1, 2, secret, timeout_s, num_devices=2)


@pytest.mark.fault
@pytest.mark.row(21)
def test_a_trainer_that_does_not_go_on():
    """It listens, but never accepts a connection."""
    with TrainerHandshake("127.0.0.1", 0, SECRET) as handshake:
        receiver = GlooReceiver(membership(handshake.port, timeout_s=1.0), MemoryPool())
        assert wait_for(lambda: receiver.state is ReceiverState.FAILED, 5) > 0.5
    assert "did not let rank 1 join: no answer" in receiver.reason
    with pytest.raises(TransferError, match="no answer"):
        receiver.take(1)
    receiver.close()


@pytest.mark.fault
@pytest.mark.row(21)
@pytest.mark.parametrize("message", [None, {"name": "gloo"}], ids=["no transport", "no group"])
def test_a_trainer_that_stops_after_the_handshake(message):
    with TrainerHandshake("127.0.0.1", 0, SECRET) as handshake:
        receiver = GlooReceiver(membership(handshake.port, timeout_s=1.0), MemoryPool())
        (link,) = handshake.accept(1, 5).values()
        if message is not None:
            link.signal(MessageCode.TRANSPORT, **message)
        wait_for(lambda: receiver.state is ReceiverState.FAILED, 5)
        link.close()
    assert ("sent nothing for 1 s" if message is None else "did not meet") in receiver.reason
    receiver.close()


@pytest.mark.fault
@pytest.mark.row(21)
@pytest.mark.parametrize("message", [None, {"name": "gloo"}], ids=["no transport", "no group"])
def test_a_worker_that_is_closed_while_it_joins(message):
    with TrainerHandshake("127.0.0.1", 0, SECRET) as handshake:
        receiver = GlooReceiver(membership(handshake.port, timeout_s=60), MemoryPool())
        (link,) = handshake.accept(1, 5).values()
        if message is not None:
            link.signal(MessageCode.TRANSPORT, **message)
        time.sleep(0.2)
        began = time.monotonic()
        receiver.close()
        assert receiver.state is ReceiverState.FAILED
        assert time.monotonic() - began < 20, "the worker's own limit is 60 s"
        link.close()


@pytest.mark.fault
@pytest.mark.row(21)
def test_no_trainer_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        receiver = GlooReceiver(membership(free.getsockname()[1], timeout_s=1.0), MemoryPool())
        wait_for(lambda: receiver.state is ReceiverState.FAILED, 10)
    assert "no trainer at 127.0.0.1" in receiver.reason


@pytest.mark.fault
@pytest.mark.row(21)
def test_a_worker_that_never_joins_is_named(replica):
    replica.local_address = lambda info, worker: ""
    replica.world_size = 2
    init = replica.init_weight_transfer_engine

    def call_in_one(body: dict[str, Any]) -> dict[str, Any]:
        replica.world_size = 1
        return init(body)

    replica.init_weight_transfer_engine = call_in_one
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=2) as client:
        with pytest.raises(SyncError) as caught:
            client.push(weights())
    assert "did not join" in str(caught.value) or "not done within 2 s" in str(caught.value)


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_port_that_is_taken_and_an_address_that_is_not_ours(replica):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransferError, match=f"master_port {port}: Address already in use"):
            TrainerHandshake("127.0.0.1", port, SECRET)
        with WeightSync(replica.address, backend="gloo", control_key=KEY, master_port=port, timeout=5) as client:
            with pytest.raises(TransferError, match="already in use"):
                client.push(weights())
    with pytest.raises(TransferError, match=r"192\.0\.2\.1"):
        TrainerHandshake("192.0.2.1", 0, SECRET)


@pytest.mark.fault
@pytest.mark.row(20)
def test_nothing_listens_beyond_the_given_address(replica):
    listening: set[str] = set()

    def look(sent: int, total: int) -> None:
        listening.update(c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN")

    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as client:
        client.push(weights(), progress=look)
    assert listening == {"127.0.0.1"}


@pytest.mark.fault
def test_nothing_is_left_after_many_trainers(replica):
    process = psutil.Process()

    def push_once() -> None:
        with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as client:
            client.push(weights())

    push_once()
    time.sleep(1)  # threads of the first push end; those of killed trainers in other tests may linger, and only go
    threads, files = process.num_threads(), process.num_fds()
    for _ in range(5):
        push_once()
    wait_for(lambda: process.num_threads() <= threads + 1 and process.num_fds() <= files + 2, 10)
