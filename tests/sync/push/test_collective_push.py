"""Pushes from two real processes, whose model FSDP2 shards over gloo, into a fake replica."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from tests.sync.replica import Replica
from tests.sync.sharded_trainer import RANK_TIMEOUT_S, TIMEOUT_S, Model
from tests.sync.stand_in import KEY

Outcomes = list[list[dict[str, Any]] | None]
SENTENCE = "so every rank of the trainer must call WeightSync.push"


def whole_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in Model().state_dict().items()}


@pytest.fixture
def replica() -> Iterator[Replica]:
    with Replica({name: torch.zeros_like(tensor) for name, tensor in whole_weights().items()}) as running:
        yield running


@pytest.fixture
def train(replica: Replica) -> Callable[[str], Outcomes]:
    """Run both ranks in this mode; returns the output of each, None for a killed one."""

    def run(mode: str) -> Outcomes:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": "2",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, as torchrun's agent hosts it
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.sync.sharded_trainer", replica.address, KEY, mode]
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | variables | {"RANK": str(rank)},
                cwd=Path(__file__).parents[3],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            ended = [(process, *process.communicate(timeout=90)) for process in processes]
        finally:
            for process in processes:
                process.kill()
        del store
        outcomes: Outcomes = []
        for process, stdout, stderr in ended:
            assert process.returncode in (0, -signal.SIGKILL), stderr
            outcomes.append(json.loads(stdout) if process.returncode == 0 else None)
        return outcomes

    return run


def without_seconds(outcomes: Outcomes) -> list[Any]:
    return [[{k: v for k, v in push.items() if k != "seconds"} for push in rank or []] for rank in outcomes]


def test_both_ranks_gather_and_return_the_same_report(replica, train):
    here, there = without_seconds(train("together"))
    assert here == there
    assert [push["version"] for push in here] == ["step-1", "step-2"]
    assert replica.version == "step-2"
    for name, tensor in whole_weights().items():
        assert torch.equal(replica.tensors[name], tensor + 1.0 + 1.0)
    assert replica.calls.count("init_weight_transfer_engine") == 1  # rank 0 alone talks to the replica


@pytest.mark.parametrize(("mode", "absent", "caller"), [("alone", 1, 0), ("without-0", 0, 1)])
def test_a_push_by_one_rank_is_refused_and_the_next_by_all_is_served(replica, train, mode, absent, caller):
    outcomes = train(mode)
    refused = outcomes[caller][0]
    assert refused["error"] == "SourceError"
    assert refused["message"].startswith(f"rank {absent} has not called push within 1.5 s; the weights are sharded")
    assert refused["message"].endswith(SENTENCE)
    assert refused["seconds"] < RANK_TIMEOUT_S + 2
    assert [rank[-1]["version"] for rank in outcomes] == ["together", "together"]
    assert replica.calls.count("start_weight_update") == 1


def test_what_a_worker_refuses_is_raised_at_both_ranks_and_nothing_hangs(replica, train):
    here, there = without_seconds(train("nan"))
    assert here == there
    assert (here[0]["error"], "NaN or Inf in layers.0.bias" in here[0]["message"]) == ("RejectedError", True)
    assert here[1]["version"] == replica.version == "healed"


def test_what_does_not_fit_is_raised_at_both_ranks_before_anything_is_gathered(replica, train):
    here, there = without_seconds(train("mismatch"))
    assert here == there
    assert here[0]["error"] == "CheckError"
    assert "more: not a tensor of the served checkpoint" in here[0]["message"]
    assert "start_weight_update" not in replica.calls


@pytest.mark.parametrize("mode", ["error", "kill"])
def test_a_rank_that_fails_in_a_gather_ends_the_push_at_all(replica, train, mode):
    here, there = train(mode)
    assert here[0]["error"] == "TransferError"
    assert here[0]["seconds"] < TIMEOUT_S  # it does not wait for the deadline
    if mode == "error":
        assert there[0]["error"] == here[0]["error"]
    else:
        assert there is None
    assert (replica.version, replica.state) == ("default", "serving")
