"""Pushes to every kind of engine and model: served as pushed, and after a failure on one rank healed and rolled back.

Real Triton, real vLLM; what is served is compared, by logprobs, with a forward pass of transformers.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sync import SyncError, VerifyError, WeightSync
from sync.control.connect import connect
from sync.control.target import Target
from tests.matrix.faulty_operations import FAULT_FILE
from tests.matrix.models import tiny_checkpoint
from tritonlive.launch import Stack, StackConfig

pytestmark = pytest.mark.stack

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


@dataclass
class Running:
    """A case's replicas, and a file that makes a rank of each of them fail."""

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
        """The checkpoint, as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.case.dtype))

    def model(self, seed: int) -> Any:
        """A model of transformers, other than the checkpoint; float32 holds what float32 serves."""
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
            found[-1].wait_ready(400)
        yield Running(case, found, folder, fault)


def test_what_lies_on_disk_is_not_taken_for_what_serves(running: Running) -> None:
    """shared/repro/push/p1.py: with dummy weights, or zeros, a push of the checkpoint was called unchanged.

    The first test of all: its first push is the first that these engines get.
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
    """`--load-format dummy` has none, and says so."""
    with WeightSync(running.targets, backend="gloo", control_key=running.key, timeout=120) as sync:
        sync.push(running.model(1), "one")
        if DUMMY in running.case.engines:
            with pytest.raises(SyncError, match="load-format dummy"):
                sync.reload()
            return
        assert sync.reload() == "default"
        sync.verify(running.checkpoint(), PROMPTS, running.case.atol)
