"""Trainers that die, and strangers at the rendezvous: real processes, real signals, real sockets."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from sync.kept import KeptWeights

from sync import TransferError, WeightSync
from sync.digest import digest, pack_digests
from sync.gloo import GlooGroup, Membership, host_store, join_store
from sync.gloo_receiver import Announcement, GlooReceiver, State
from sync.sources import ParamMeta
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY
from tests.sync.trainer import NUM_ELEMENTS, NUM_TENSORS, weights

TRAINER = Path(__file__).with_name("trainer.py")
WAYS = pytest.mark.parametrize("way", ["shared", "broadcast"])


@pytest.fixture
def replica():
    zeros = {f"layers.{number}": torch.zeros(NUM_ELEMENTS) for number in range(NUM_TENSORS)}
    with Replica(zeros) as running:
        yield running


@pytest.fixture
def start_trainer(replica):
    started: list[subprocess.Popen] = []

    def start(mode: str, way: str = "shared") -> subprocess.Popen:
        command = [sys.executable, str(TRAINER), replica.address, KEY, mode, way]
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
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as sync:
        assert sync.push(weights()).version == "v1"
    assert torch.equal(replica.tensors["layers.5"], torch.full((NUM_ELEMENTS,), 5.0))


@pytest.mark.fault
@WAYS
@pytest.mark.parametrize("mode", ["kill", "hang"])
def test_a_trainer_killed_in_the_middle_of_a_transfer(replica, start_trainer, mode, way):
    trainer = start_trainer(mode, way)
    if mode == "hang":  # waits between two messages
        assert trainer.stdout.readline() == "halfway\n"
        trainer.kill()
    trainer.wait(60)
    receiver = replica.receiver
    assert trainer.returncode == -signal.SIGKILL
    wait_for(lambda: receiver.state is State.FAILED, 5)
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
    wait_for(lambda: receiver.state is State.FAILED, 5)
    assert "the trainer is gone" in receiver.reason
    another_trainer_succeeds(replica)


@pytest.mark.fault
@WAYS
def test_ctrl_c_gives_up_cleanly(replica, start_trainer, way):
    trainer = start_trainer("interrupt", way)
    assert trainer.stdout.readline() == "halfway\n"
    trainer.send_signal(signal.SIGINT)
    trainer.wait(10)
    assert trainer.returncode == -signal.SIGINT or trainer.returncode == 1
    assert replica.calls.count("abort_weight_update") >= 1
    assert replica.state == "serving"
    another_trainer_succeeds(replica)


@pytest.mark.fault
@WAYS
def test_a_worker_that_goes_in_the_middle_of_a_transfer(replica, way):
    def leave(sent: int, total: int) -> None:
        if sent * 2 > total and replica.receivers:
            replica.receivers.pop().close()

    began = time.monotonic()
    is_shared = way == "shared"
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20, shared_memory=is_shared) as sync:
        with pytest.raises(TransferError):
            sync.push(weights(), progress=leave)
        assert sync.push(weights()).version == "v1"
    assert time.monotonic() - began < 20


# ---- the rendezvous ---------------------------------------------------------------------------------------------


def receiver_of(membership: Membership) -> GlooReceiver:
    return GlooReceiver(membership, KeptWeights(lambda: None))


def membership(port: int, group_name: str = "test", timeout_s: float = 2.0) -> Membership:
    return Membership("127.0.0.1", port, 1, 2, group_name, timeout_s, num_devices=2)


@pytest.mark.fault
@pytest.mark.row(21)
def test_a_trainer_that_never_joins():
    store, port = host_store("127.0.0.1", 0, 5)
    receiver = receiver_of(membership(port, timeout_s=1.0))
    assert wait_for(lambda: receiver.state is State.FAILED, 5) > 0.5
    assert "did not meet within 1 s" in receiver.reason
    receiver.close()
    del store


@pytest.mark.fault
@pytest.mark.row(21)
def test_no_rendezvous_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        receiver = receiver_of(membership(free.getsockname()[1], timeout_s=1.0))
        wait_for(lambda: receiver.state is State.FAILED, 10)
    assert "no rendezvous at 127.0.0.1" in receiver.reason


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_port_that_is_taken_and_an_address_that_is_not_ours(replica):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransferError, match=f"master_port {port}: Address already in use"):
            host_store("127.0.0.1", port, 1)
        with WeightSync(replica.address, backend="gloo", control_key=KEY, master_port=port, timeout=5) as sync:
            with pytest.raises(TransferError, match="already in use"):
                sync.push(weights())
    with pytest.raises(TransferError, match=r"192\.0\.2\.1"):
        host_store("192.0.2.1", 0, 1)


@pytest.mark.fault
@pytest.mark.row(20)
def test_an_uninvited_joiner_gets_no_rank():
    store, port = host_store("127.0.0.1", 0, 5)
    stranger = receiver_of(membership(port, group_name="guess", timeout_s=1.5))
    invited = receiver_of(membership(port, group_name="secret"))
    group = GlooGroup(store, replace(membership(port, group_name="secret"), rank=0), "127.0.0.1")
    meta = ParamMeta("a", "float32", (4,))
    invited.announce(Announcement([meta], 1024))
    assert group.gather_verdicts() == {}
    data = torch.ones(4).view(torch.uint8)
    group.wait(group.broadcast(data))
    group.wait(group.broadcast(pack_digests([digest(data)])))
    assert group.gather_verdicts() == {}
    assert torch.equal(invited.take(2).tensors[0][1], torch.ones(4))
    wait_for(lambda: stranger.state is State.FAILED, 5)
    for receiver in (stranger, invited):
        receiver.close()
    group.close()


@pytest.mark.fault
@pytest.mark.row(20)
def test_nothing_listens_beyond_the_given_address(replica):
    listening: set[str] = set()

    def look(sent: int, total: int) -> None:
        listening.update(c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN")

    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as sync:
        sync.push(weights(), progress=look)
    assert listening == {"127.0.0.1"}


@pytest.mark.fault
def test_nothing_is_left_after_many_trainers(replica):
    process = psutil.Process()

    def push_once() -> None:
        with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20) as sync:
            sync.push(weights())

    push_once()
    time.sleep(1)  # threads of the first push end; those of killed trainers in other tests may linger, and only go
    threads, files = process.num_threads(), process.num_fds()
    for _ in range(5):
        push_once()
    wait_for(lambda: process.num_threads() <= threads + 1 and process.num_fds() <= files + 2, 10)


def test_joining_a_store_that_is_not_there_names_it():
    with pytest.raises(TransferError, match=r"no rendezvous at 127\.0\.0\.1:1 within 0\.5 s"):
        join_store("127.0.0.1", 1, 0.5)
