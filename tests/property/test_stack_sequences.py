"""A dozen random sequences against a running stack. Logprobs identify the served weights.

The reference is a forward pass of transformers with the same weights: the served logprobs must be nearest to those of
the content that the label denotes, and near.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sync import WeightSync
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from sync.errors import ConflictError, RejectedError, SyncError, UnavailableError
from sync.push.logprob_check import own_logprobs
from tritonlive.launch import Stack

ROOT = Path(__file__).parents[2]
NUM_SEQUENCES, NUM_STEPS, NUM_CONTENTS = 12, 6, 4
# The sequence in which the engine's process is killed, and before which step.
KILLED = (7, 3)
PROMPTS = [[504, 3575, 282, 4649, 314], list(range(100, 140))]
# Served in bfloat16, the reference is float32; other contents are further off than several nats.
NEAR = 0.3
RESTART_TIMEOUT_S = 180.0
STEPS = (
    *("push", "push", "push", "same", "nan", "names", "rollback", "rollback", "rollback_unknown"),
    *("reload", "second_trainer", "pause", "reset", "fence", "kill_trainer"),
)


@dataclass(frozen=True)
class Content:
    """Weights, their folder on disk, and their output for PROMPTS."""

    number: int
    tensors: dict[str, torch.Tensor]
    folder: Path
    logprobs: torch.Tensor


@pytest.fixture(scope="module")
def contents(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Content]:
    """The checkpoint's own weights first."""
    original = load_file(tiny_model_dir / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    found = []
    for number in range(NUM_CONTENTS):
        torch.manual_seed(number)
        changed = {
            name: tensor + torch.randn_like(tensor) * tensor.std() * 0.3 * min(number, 1)
            for name, tensor in original.items()
        }
        folder = tmp_path_factory.mktemp(f"content-{number}")
        save_file(changed, folder / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in changed.items()}, strict=False)
        model.tie_weights()
        found.append(Content(number, changed, folder, torch.cat(own_logprobs(model, PROMPTS))))
    return found


class Run:
    """One sequence; `labels` outlives it, since a label denotes the same for ever."""

    def __init__(self, stack: Stack, contents: list[Content], labels: dict[str, Content], index: int) -> None:
        self.contents = contents
        self.labels = labels
        self.rng = random.Random(index)  # noqa: S311 - not a secret
        self._stack = stack
        self._target = f"grpc://{stack.grpc_url}"
        self._index = index
        self._number = 0
        self.control: ControlClient = connect(Target.parse(self._target, stack.control_key), timeout=60)
        self.sync = self._trainer()

    def close(self) -> None:
        self.sync.close()
        self.control.close()

    def push(self, content: Content) -> None:
        label = self._name(content)
        report = self.sync.push(content.tensors, label)
        assert (report.version, self.status()["weight_version"]) == (label, label)

    def status(self) -> dict[str, Any]:
        return self.control.status()

    def check(self, after: str) -> None:
        """The served weights are those of the label; a replica in an unknown state refuses."""
        status = self.status()
        if status["state"] in ("dirty", "fenced"):
            with pytest.raises(UnavailableError):
                self.control.score(PROMPTS)
            return
        assert status["state"] == "serving", f"{after}: {status}"
        answer = self.control.score(PROMPTS)
        served = torch.tensor([value for row in answer["logprobs"] for value in row])
        distances = [(served - content.logprobs).abs().max().item() for content in self.contents]
        nearest = min(self.contents, key=lambda content: distances[content.number])
        denoted = self.labels[answer["weight_version"]]
        told = f"{after}: {answer['weight_version']} denotes content {denoted.number}, distances are {distances}"
        assert nearest is denoted, told
        assert distances[denoted.number] < NEAR, told

    # ---- steps ----------------------------------------------------------------------------------------------------

    def do_push(self) -> None:
        self.push(self.rng.choice(self.contents))

    def do_same(self) -> None:
        """Called unchanged only if it is."""
        status = self.status()
        content = self.labels[status["weight_version"]]
        report = self.sync.push(content.tensors, self._name(content))
        if status["state"] == "dirty":
            assert report.unchanged == ()

    def do_nan(self) -> None:
        before = self.status()
        tensors = dict(self.rng.choice(self.contents[1:]).tensors)
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
        with pytest.raises(RejectedError):
            self.sync.push(tensors, f"never-{self._index}")
        after = self.status()
        assert (after["state"], after["weight_version"]) == (before["state"], before["weight_version"])

    def do_names(self) -> None:
        with pytest.raises(SyncError):
            self.sync.push({"no.such.weight": torch.ones(1)}, f"never-{self._index}")

    def do_rollback(self) -> None:
        try:
            assert self.sync.rollback() in self.labels
        except ConflictError as error:
            assert "kept" in str(error)  # noqa: PT017 - both are right, by what there is

    def do_rollback_unknown(self) -> None:
        with pytest.raises(ConflictError):
            self.sync.rollback("never-pushed")

    def do_reload(self) -> None:
        assert self.sync.reload() == "default"

    def do_second_trainer(self) -> None:
        self.push(self.contents[1])  # connected from now on
        with self._trainer() as second, pytest.raises(ConflictError):
            second.push(self.contents[2].tensors, f"never-{self._index}")

    def do_pause(self) -> None:
        """A push to a paused replica does not resume it."""
        self.control.call("pause_generation", {"mode": "keep"})
        self.push(self.rng.choice(self.contents))
        assert self.status()["state"] == "paused"
        assert self.control.call("is_paused")["is_paused"]
        self.control.call("resume_generation")

    def do_reset(self) -> None:
        self.control.call("reset_weights")
        assert self.status()["state"] == "dirty"

    def do_fence(self) -> None:
        self.sync._fleet.clients[0].fence("a step of the sequence")
        assert self.status()["state"] in ("fenced", "dirty")

    def do_kill_trainer(self) -> None:
        """Its process, at a random point of a push: nothing goes live."""
        before = self.status()
        self.sync.close()
        content = self.rng.choice(self.contents)
        mode = self.rng.choice(["after-init", "mid-transfer", "before-commit"])
        command = [sys.executable, "-m", "tests.sync.stack_trainer", self._target, str(content.folder), mode]
        environment = os.environ | {"TRITONLIVE_CONTROL_KEY": self._stack.control_key or ""}
        assert (
            subprocess.run(command, env=environment, cwd=ROOT, timeout=120, check=False).returncode == -signal.SIGKILL
        )
        self._wait(lambda: self.status()["lease"] is None and self.status()["state"] == before["state"], 15)
        assert self.status()["weight_version"] == before["weight_version"]
        self.sync = self._trainer()

    def kill_engine(self) -> None:
        """The new engine serves the checkpoint, by its own name."""
        (engine,) = self._stack.engine_core_pids
        os.kill(engine, signal.SIGKILL)
        self._wait(lambda: self._stack.engine_core_pids != [engine], 30)
        self._wait(lambda: self.status()["state"] == "serving", RESTART_TIMEOUT_S)
        assert self.status()["weight_version"] == "default"

    # ---- small things ---------------------------------------------------------------------------------------------

    def _trainer(self) -> WeightSync:
        return WeightSync(self._target, backend="gloo", control_key=self._stack.control_key, timeout=60)

    def _name(self, content: Content) -> str:
        self._number += 1
        label = f"sequence-{self._index}-{self._number}"
        self.labels[label] = content
        return label

    def _wait(self, is_over: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                if is_over():
                    return
            except SyncError:
                pass  # it is coming back
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {self.status()}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def labels(contents: list[Content]) -> dict[str, Content]:
    return {"default": contents[0]}


@pytest.fixture
def run(
    request: pytest.FixtureRequest, stack: Stack, contents: list[Content], labels: dict[str, Content]
) -> Iterator[Run]:
    """A replica that serves the first content, and afterwards again."""
    running = Run(stack, contents, labels, request.param)
    try:
        running.push(contents[0])
        yield running
        running.push(contents[0])
        running.check("the push that heals")
    finally:
        running.close()


@pytest.mark.parametrize("run", range(NUM_SEQUENCES), indirect=True)
def test_a_stack_serves_what_its_label_says(run: Run) -> None:
    for number in range(NUM_STEPS):
        if (run._index, number) == KILLED:
            run.kill_engine()
            run.check("the engine's death")
        step = run.rng.choice(STEPS)
        getattr(run, f"do_{step}")()
        run.check(f"step {number}, {step}")
