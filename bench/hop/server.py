"""Triton with tritonlive's model over a FreeEngine, and a client of it."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from bench.child import Child
from bench.measure import Figures
from bench.peer import ENVIRONMENT
from tritonlive.launch.config import StackConfig, default_cache_dir
from tritonlive.launch.stack import Stack
from tritonlive.wire.tensor_names import MODEL as MODEL_NAME

MODEL = "from bench.hop.model import TritonPythonModel\n"
"""Content of model.py in the model's version folder."""
START_TIMEOUT_S = 120.0
METRICS_TIMEOUT_S = 10.0
"""Time limit for metrics. The model publishes them four times a second."""


class Hop:
    """The Triton server and its connected client."""

    def __init__(self, stack: Stack, client: Child) -> None:
        self._stack = stack
        self._client = client

    def processes(self) -> list[psutil.Process]:
        return [*self._stack.triton.members(), *self._client.processes()]

    def generate(self, concurrency: int, max_tokens: int) -> Figures:
        """Run `concurrency` generations at once; returns rates, and steps and tokens per message.

        Raises ChildError if a generation fails, RuntimeError if the model's metrics do not show the steps in time.
        """
        messages_before, steps_before = self._sent()
        figures = self._client.ask({"concurrency": concurrency, "max_tokens": max_tokens})
        messages, steps = self._wait_until_sent(steps_before + figures["steps"])
        messages, steps = messages - messages_before, steps - steps_before
        return figures | {
            "messages/s": messages / figures["seconds"],
            "steps/message": steps / messages,
            "tokens/message": figures["completion tokens"] / messages,
        }

    def _wait_until_sent(self, num_steps: float) -> tuple[float, float]:
        deadline = time.monotonic() + METRICS_TIMEOUT_S
        while (sent := self._sent())[1] < num_steps:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the client has {num_steps:.0f} steps, but Triton's metrics show {sent[1]:.0f}")
            time.sleep(0.05)
        return sent

    def _sent(self) -> tuple[float, float]:
        """(messages that the model has sent to front ends, steps in them)."""
        text = httpx.get(self._stack.metrics_url, timeout=METRICS_TIMEOUT_S).text
        return metric(text, "tritonlive_channel_messages_total"), metric(text, "tritonlive_channel_steps_total")


@contextmanager
def hop(model: Path, args: tuple[str, ...]) -> Iterator[Hop]:
    """Start both. The engine has the arguments of other systems, but uses only the configuration of the model."""
    with tempfile.TemporaryDirectory(prefix="tritonlive-hop-") as folder:
        repository = copy_model(Path(folder) / "model_repository")
        stack = Stack(StackConfig(model=str(model), extra_args=args, model_repository=repository))
        try:
            stack.triton.start()  # the client replaces the front end
            stack.wait_triton_ready(START_TIMEOUT_S)
            log_path = default_cache_dir() / "logs" / "bench-hop.log"
            with Child("bench.hop.client", [stack.grpc_url], ENVIRONMENT, log_path) as client:
                yield Hop(stack, client)
        finally:
            stack.stop()


def copy_model(target: Path) -> Path:
    """Copy the model repository, with the model over a FreeEngine."""
    shutil.copytree(StackConfig.model_repository, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / MODEL_NAME / "1" / "model.py").write_text(MODEL)
    return target


def metric(text: str, name: str) -> float:
    """Value of a metric in the text of Triton's /metrics; 0 before it is published."""
    found = re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
