"""The trainer of a soak: it pushes weights and an adapter again and again."""

import threading
import time
from collections.abc import Callable

import torch
from safetensors.torch import load_file

from bench.soak.load import ADAPTER, Answer
from bench.soak.stack import SoakStack
from sync import WeightSync

RANK = 8
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
TIMEOUT_S = 60.0
RETRY_S = 5.0


class Trainer:
    """A thread that pushes every `interval_s` seconds, until `stop`."""

    def __init__(self, stack: SoakStack, interval_s: float, clock: float, note: Callable[[Answer], None]) -> None:
        """clock: the monotonic clock at the run's begin. note: called after each push."""
        self.has_adapter = threading.Event()
        """Set while the adapter is served: an engine that has started again has none until the next push."""
        self._stack = stack
        self._interval_s = interval_s
        self._clock = clock
        self._note = note
        self._stop = threading.Event()
        self._weights = load_file(stack.model_dir / "model.safetensors")
        self._thread = threading.Thread(target=self._run, name="trainer")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the push that runs."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            outcome, pause_s = "answered", self._interval_s
            try:
                self._push(number)
            except Exception as error:  # whatever it is, it is an outcome, and the pushes go on
                outcome, pause_s = f"{type(error).__name__}: {str(error)[:200]}", RETRY_S
            seconds = time.monotonic() - began
            self._note(Answer("push", began - self._clock, seconds, outcome))
            self._stop.wait(max(0.0, pause_s - seconds) if outcome == "answered" else pause_s)

    def _push(self, number: int) -> None:
        """Weights that are the checkpoint's or slightly larger, and an adapter."""
        scale = 1.0 + 0.1 * (number % 2)
        weights = {name: tensor * scale if "mlp" in name else tensor for name, tensor in self._weights.items()}
        url, key = self._stack.url, self._stack.control_key
        with WeightSync(url, backend="gloo", control_key=key, timeout=TIMEOUT_S) as client:
            client.push(weights, f"soak-{number}")
            client.push_adapter(ADAPTER, _adapter(number), config=CONFIG)
        self.has_adapter.set()


def _adapter(seed: int) -> dict[str, torch.Tensor]:
    """An adapter of the tiny model with PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": 0.1
        * torch.randn(shape, generator=generator)
        for layer in range(2)
        for module in ("q_proj", "v_proj")
        for side, shape in (("A", (RANK, 64)), ("B", (64, RANK)))
    }
