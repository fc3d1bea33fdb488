"""Times `load_weights` inside a worker of vLLM's offline LLM."""

import time
from itertools import cycle
from typing import Any

import torch

from bench.weights import staged, weight_set
from sync.worker.loading import load


class LoadTimer:
    """Methods of a worker (`--worker-extension-cls`). vLLM calls them by name, so nothing is pickled."""

    model_runner: Any
    bench_sets: Any = None
    """Endless iterator over the staged sets; made on first use."""

    def time_load(self) -> float:
        """Load the next set from memory, as a push's commit does; returns the seconds."""
        config = self.model_runner.model_config
        if self.bench_sets is None:
            self.bench_sets = cycle([staged(weight_set(config.model, seed)) for seed in (0, 1)])
        tensors = next(self.bench_sets)
        began = time.perf_counter()
        with torch.inference_mode():
            load(self.model_runner.model, config, tensors)
        return time.perf_counter() - began
