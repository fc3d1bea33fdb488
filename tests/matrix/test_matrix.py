"""Pushes to every kind of engine and model, and the life of engines of several workers.

A push is served as pushed; after a failure on one rank the replica is healed and rolled back. Engines of several
workers answer like one of one worker, start again together, and end without orphans. Real Triton, real vLLM; served
logprobs are compared with those of transformers.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from sync import SyncError, VerifyError, WeightSync
from sync.control.connect import connect
from sync.control.target import Target
from tests.matrix.faulty_operations import FAULT_FILE
from tests.matrix.models import tiny_checkpoint
from tritonlive.launch import Stack, StackConfig

logger = logging.getLogger(__name__)

RESTART_TIMEOUT_S = 240
UNREADY_LIMIT_S = 2
WORKER_TITLE = "VLLM::Worker"
PROMPTS = [list(range(100, 120)), list(range(2000, 2012))]
TP2, PP2, DP2 = ("--tensor-parallel-size=2",), ("--pipeline-parallel-size=2",), ("--data-parallel-size=2",)
DUMMY = ("--load-format=dummy",)


@dataclass(frozen=True)
class Case:
    """A model, and the engines that serve it: the vLLM arguments of each replica."""

    kind: str
    engines: tuple[tuple[str, ...], ...]
    dtype: str = "float32"
    atol: float = 1e-3


CASES = {
    "tp2-untied": Case("untied", (TP2,)),
    "pp2-tied": Case("tied", (PP2,)),
    "dp2-tied": Case("tied", (DP2,)),
    "moe-tp2": Case("moe", (TP2,)),
    "float32-parameters": Case("float32-parameters", ((),), dtype="bfloat16", atol=0.25),
    "dummy": Case("untied", (DUMMY,)),
    "fleet-of-tp2-and-1": Case("tied", (TP2, ())),
}


PARALLEL = {"tp2-untied": 1, "pp2-tied": 1, "dp2-tied": 2}
"""Engine cores of the cases of one replica with two workers. The first cases, in their order: pytest then runs all
tests of a case while its engines run."""
NUM_TOKENS = 8


@dataclass
class Running:
    """A case's replicas, and a file that makes a rank of each of them fail."""

    name: str
    case: Case
    stacks: list[Stack]
    folder: Path
    fault: Path

    @property
    def targets(self) -> list[str]:
        return [f"grpc://{stack.grpc_url}" for stack in self.stacks]

    @property
    def key(self) -> str:
        return self.stacks[0].control_key

    def statuses(self) -> list[dict[str, Any]]:
        found = []
        for target in self.targets:
            with connect(Target.parse(target, self.key), timeout=60) as client:
                found.append(client.status())
        return found

    def checkpoint(self) -> Any:
        """The checkpoint as transformers loads it, in the dtype that serves."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.case.dtype))

    def model(self, seed: int) -> Any:
        """A model of transformers with other weights than the checkpoint's, in the dtype that serves."""
        torch.manual_seed(seed)
        model = self.checkpoint()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * parameter.float().std().to(parameter.dtype) * 0.3
        return model


@pytest.fixture(scope="module", params=CASES)
def running(
    request: pytest.FixtureRequest, stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    case = CASES[request.param]
    folder = tiny_checkpoint(stack_config.cache_dir, case.kind)
    fault = tmp_path_factory.mktemp("fault") / "rank"
    with ExitStack() as stacks:
        found = []
        for number, engine in enumerate(case.engines):
            config = replace(
                stack_config,
                model=str(folder),
                extra_args=(
                    *("--dtype", case.dtype, "--enforce-eager", "--max-model-len", "128"),
                    *("--worker-extension-cls", "tests.matrix.faulty_operations.FaultyOperations"),
                    *engine,
                ),
                env={FAULT_FILE: str(fault)},
                log_dir=tmp_path_factory.mktemp(f"{request.param}-{number}"),
            )
            found.append(stacks.enter_context(Stack(config)))
        for stack in found:
            stack.wait_ready(400)
        yield Running(request.param, case, found, folder, fault)
        for stack in found:
            stack.kill()  # a stop takes seconds; one test looks at it


def test_what_lies_on_disk_is_not_taken_for_what_serves(running: Running) -> None:
    """With dummy weights, or zeros, a push of the checkpoint changes the served weights.

    This is the first test of a case: its first push is the first that these engines get.
    """
    checkpoint = running.checkpoint()
    with WeightSync(running.targets, backend="gloo", control_key=running.key, timeout=120) as sync:
        assert not sync.push(checkpoint, "first").unchanged
        sync.verify(checkpoint, PROMPTS, running.case.atol)
        assert set(sync.push(checkpoint, "second").unchanged) == set(running.targets)
        for target in running.targets:
            with connect(Target.parse(target, running.key), timeout=60) as client:
                client.call("reset_weights")
        assert not sync.push(checkpoint, "third").unchanged
        sync.verify(checkpoint, PROMPTS, running.case.atol)


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared memory", "broadcast"])
def test_pushed_failed_healed_rolled_back(running: Running, *, shared_memory: bool) -> None:
    one, two = running.model(1), running.model(2)
    atol = running.case.atol
    with WeightSync(
        running.targets, backend="gloo", control_key=running.key, timeout=120, shared_memory=shared_memory
    ) as sync:
        report = sync.push(one, "one")
        assert report.transport == ("shared memory" if shared_memory else "gloo")
        sync.verify(one, PROMPTS, atol)
        with pytest.raises(VerifyError):
            sync.verify(two, PROMPTS, atol)

        last_rank = running.statuses()[0]["world_size"] - 1
        running.fault.write_text(str(last_rank))
        with pytest.raises(SyncError, match=r"out of memory \(a test's\)"):
            sync.push(two, "two")
        running.fault.unlink()
        states = running.statuses()
        assert states[0]["state"] == "dirty"
        assert states[0]["weight_version"] == "one"
        with pytest.raises(SyncError, match="dirty"):
            sync.verify(one, PROMPTS, atol)

        sync.push(two, "two")
        sync.verify(two, PROMPTS, atol)
        assert sync.rollback() == "one"
        assert {status["weight_version"] for status in running.statuses()} == {"one"}
        sync.verify(one, PROMPTS, atol)


def test_the_way_back_to_the_checkpoint(running: Running) -> None:
    """A replica started with `--load-format dummy` has no checkpoint to reload, and says so."""
    with WeightSync(running.targets, backend="gloo", control_key=running.key, timeout=120) as sync:
        sync.push(running.model(1), "one")
        if DUMMY in running.case.engines:
            with pytest.raises(SyncError, match="load-format dummy"):
                sync.reload()
            return
        assert sync.reload() == "default"
        sync.verify(running.checkpoint(), PROMPTS, running.case.atol)


# ---- engines of several workers -----------------------------------------------------------------------------------
# They serve the checkpoint from here on, by the reload above.

parallel = pytest.mark.parametrize("running", PARALLEL, indirect=True)


def complete(stack: Stack) -> dict[str, Any]:
    """A greedy choice, with token ids and logprobs. Raises httpx.HTTPError."""
    body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    body |= {"logprobs": 0, "return_token_ids": True}
    answer = httpx.post(f"{stack.frontend_url}/v1/completions", json=body, headers=headers, timeout=60)
    answer.raise_for_status()
    return answer.json()["choices"][0]


def expected(checkpoint: Any) -> tuple[list[int], list[float]]:
    """The greedy tokens and their logprobs, by transformers."""
    ids = torch.tensor([PROMPTS[0]])
    logprobs = []
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            row = checkpoint(ids).logits[0, -1].log_softmax(-1)
        token = int(row.argmax())
        logprobs.append(float(row[token]))
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return ids[0, len(PROMPTS[0]) :].tolist(), logprobs


@parallel
def test_it_answers_as_transformers_does(running: Running) -> None:
    tokens, logprobs = expected(running.checkpoint())
    (stack,) = running.stacks
    for _ in range(4):  # with data parallelism both engine cores answer
        choice = complete(stack)
        assert choice["token_ids"] == tokens
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-3)


@parallel
def test_after_the_death_of_an_engine_core_all_are_started_again(running: Running) -> None:
    (stack,) = running.stacks
    kill_and_come_back(running, psutil.Process(stack.engine_core_pids[-1]))


@pytest.mark.row(29)
@pytest.mark.parametrize("running", ["tp2-untied", "pp2-tied"], indirect=True)
def test_after_the_death_of_one_worker_all_are_started_again(running: Running) -> None:
    (stack,) = running.stacks
    (core,) = stack.engine_core_pids
    workers = [each for each in psutil.Process(core).children() if WORKER_TITLE in " ".join(each.cmdline())]
    assert len(workers) == 2
    kill_and_come_back(running, workers[-1])
    assert not any(map(is_alive, workers))


def kill_and_come_back(running: Running, process: psutil.Process) -> None:
    """Kill a process of the engine: `/health` says so within UNREADY_LIMIT_S, and all its processes are new."""
    tokens, _ = expected(running.checkpoint())
    (stack,) = running.stacks
    before = stack.engine_core_pids
    assert len(before) == PARALLEL[running.name]
    process.kill()
    killed = time.monotonic()
    deadline = killed + RESTART_TIMEOUT_S
    while httpx.get(f"{stack.frontend_url}/health", timeout=10).status_code == 200:
        assert time.monotonic() < killed + UNREADY_LIMIT_S
    while set(stack.engine_core_pids) & set(before):
        assert time.monotonic() < deadline, "an engine core outlived another"
        time.sleep(0.1)
    while True:
        try:
            assert complete(stack)["token_ids"] == tokens
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the engine did not come back"
            time.sleep(1)
        else:
            break
    after = stack.engine_core_pids
    logger.info("%s: a killed %s, back after %.0f s", running.name, process, time.monotonic() - killed)
    assert len(after) == PARALLEL[running.name]
    assert not set(before) & set(after)


@parallel
def test_nothing_is_left_when_it_has_stopped(running: Running) -> None:
    """The last test of a case."""
    (stack,) = running.stacks
    members = stack.triton.members()
    assert len(members) > 2
    stack.stop()
    assert [process for process in members if is_alive(process)] == []


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs. A zombie does not: its parent, a container's first process, may never ask for its status."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
