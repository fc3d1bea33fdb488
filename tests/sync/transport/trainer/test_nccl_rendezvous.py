"""vLLM's own rendezvous code in worker processes, without a GPU: the group's id is any object."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from sync.deadline import Deadline
from sync.errors import ConflictError, DeadlineError, TransferError
from sync.transport.trainer.nccl_rendezvous import NcclRendezvous

# Like PyNcclCommunicator before it calls NCCL. Prints that it is connected, and how it ended.
WORKER = """
import json, sys, time
from vllm.distributed.utils import StatelessProcessGroup
port, rank, world_size = map(int, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    group = StatelessProcessGroup.create("127.0.0.1", port, rank, world_size)
    print("connected", flush=True)
    outcome = {"id": group.broadcast_obj(None, src=0)}
except Exception as error:
    outcome = {"error": type(error).__name__}
print(json.dumps(outcome | {"seconds": time.monotonic() - began}), flush=True)
"""

Worker = subprocess.Popen[str]


@pytest.fixture
def start() -> Iterator[Callable[[NcclRendezvous, int], Worker]]:
    """A worker process that has imported vLLM. `join` makes it join."""
    workers: list[Worker] = []

    def run(rendezvous: NcclRendezvous, rank: int) -> Worker:
        arguments = [str(rendezvous.port), str(rank), str(rendezvous.world_size)]
        command = [sys.executable, "-c", WORKER, *arguments]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        workers.append(worker)
        return worker

    yield run
    for worker in workers:
        worker.kill()
        worker.communicate()


def join(worker: Worker) -> None:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()


def said(worker: Worker) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if (text := line.strip()) and not text.startswith(("INFO", "WARNING", "[")):
            return text
    raise AssertionError("the worker ended")


def ended(worker: Worker) -> dict[str, Any]:
    return json.loads(said(worker))


def test_all_workers_come_and_get_the_id(start):
    rendezvous = NcclRendezvous("127.0.0.1", 0, 3)
    workers = [start(rendezvous, rank) for rank in (1, 2)]
    for worker in workers:
        assert said(worker) == "ready"
        join(worker)
        assert said(worker) == "connected"
    group = rendezvous.wait(Deadline(20), Future())
    assert (group.rank, group.world_size) == (0, 3)
    group.broadcast_obj("the id", src=0)
    assert [ended(worker)["id"] for worker in workers] == ["the id"] * 2
    rendezvous.close()


def test_a_refusal_at_one_replica_ends_the_wait_of_all_who_came_and_of_those_who_come_later(start):
    rendezvous = NcclRendezvous("127.0.0.1", 0, 4)
    early, late = start(rendezvous, 1), start(rendezvous, 2)  # the third replica refuses
    assert (said(early), said(late)) == ("ready", "ready")
    join(early)
    assert said(early) == "connected"
    refused: Future[None] = Future()
    refused.set_exception(ConflictError("http://b", "init_weight_transfer_engine", "another trainer"))
    began = time.monotonic()
    with pytest.raises(ConflictError, match="another trainer"):
        rendezvous.wait(Deadline(60), refused)
    rendezvous.call_off()
    assert "error" in ended(early)
    assert time.monotonic() - began < 5
    join(late)
    assert said(late) == "connected"
    outcome = ended(late)
    assert ("error" in outcome, outcome["seconds"] < 5) == (True, True)


def test_workers_that_never_come_end_it_by_the_deadline(start):
    rendezvous = NcclRendezvous("127.0.0.1", 0, 3)
    one = start(rendezvous, 1)
    assert said(one) == "ready"
    join(one)
    assert said(one) == "connected"
    with pytest.raises(DeadlineError, match="2 workers have not all connected to"):
        rendezvous.wait(Deadline(0.5), Future())
    rendezvous.call_off()
    assert "error" in ended(one)


def test_a_port_that_is_taken():
    first = NcclRendezvous("127.0.0.1", 0, 2)
    with pytest.raises(TransferError, match="cannot listen on master_address"):
        NcclRendezvous("127.0.0.1", first.port, 2)
    first.call_off()
