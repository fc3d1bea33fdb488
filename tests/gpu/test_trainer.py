"""The trainer's end alone on a GPU: its caller's stream, and a communicator that is stuck. No server."""

import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from sync.deadline import Deadline, spawn, wait
from sync.push.caller_stream import CallerStream, StreamOrderedSource
from sync.push.vllm_trainer import create_communicator
from sync.transport.trainer.nccl_rendezvous import NcclRendezvous
from sync.weights.device_source import DeviceSource, gpu_problem
from sync.weights.sources import TensorSource

from .conftest import TRAINER_DEVICE, needs_gpu, needs_nccl

pytestmark = [pytest.mark.gpu, needs_gpu]
NUM_ELEMENTS = 2**24
# Some tenths of a second on any GPU: the write is still waiting when the other thread reads.
SLEEP_CYCLES = 10**9


@pytest.fixture(autouse=True)
def _device() -> None:
    torch.cuda.set_device(TRAINER_DEVICE)


def test_a_read_in_another_thread_waits_for_what_the_caller_has_queued():
    """A push right after an optimizer step that runs on another stream."""
    tensor = torch.zeros(NUM_ELEMENTS, device=TRAINER_DEVICE)
    step, reading = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(step):
        torch.cuda._sleep(SLEEP_CYCLES)
        tensor.fill_(1.0)
        caller = CallerStream.capture()

    def read() -> torch.Tensor:
        with torch.cuda.stream(reading):  # like vLLM's packed broadcast: not the thread's own stream
            _, copied = next(iter(StreamOrderedSource(TensorSource({"a": tensor}), caller)))
            copied = copied.clone()
        reading.synchronize()
        return copied

    copied = wait(spawn(caller.bound(read), "push"), Deadline(30), "read")
    assert bool((copied == 1.0).all())


def test_host_tensors_arrive_on_the_gpu():
    tensors = {"a": torch.randn(5, 3), "b": torch.arange(4)}
    moved = dict(DeviceSource(TensorSource(tensors), torch.device(TRAINER_DEVICE)))
    assert {str(tensor.device) for tensor in moved.values()} == {TRAINER_DEVICE}
    assert all(torch.equal(tensor.cpu(), tensors[name]) for name, tensor in moved.items())
    assert gpu_problem("nccl") is None


@needs_nccl
def test_a_stuck_communicator_is_aborted():
    """The other rank never takes part in the broadcast. vLLM's destroy (ncclCommAbort) ends the wait."""
    rendezvous = NcclRendezvous("127.0.0.1", 0, 2)
    command = [sys.executable, "-m", "tests.gpu.nccl_peer", str(rendezvous.port), "cuda:0"]
    peer = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        communicator = create_communicator(rendezvous.wait(Deadline(120), Future()))

        def broadcast() -> None:
            torch.cuda.set_device(TRAINER_DEVICE)
            communicator.broadcast(torch.ones(2**28, device=TRAINER_DEVICE), src=0)
            torch.cuda.current_stream().synchronize()

        stuck: Future[None] = spawn(broadcast, "stuck")
        with pytest.raises(TimeoutError):
            stuck.result(timeout=3)
        spawn(communicator.destroy, "abort")
        stuck.exception(timeout=30)  # it returns, or raises: either way its thread is not left behind
        assert stuck.done()
    finally:
        peer.kill()
        peer.wait()
