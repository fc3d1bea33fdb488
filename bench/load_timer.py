"""`load_weights` alone, inside a worker of vLLM's offline LLM."""

import time
from itertools import cycle
from typing import Any

import torch

from bench.weights import staged, weight_set
from sync.worker.loading import load


class LoadTimer:
    """Methods for a worker (`--worker-extension-cls`): they are called by name, so nothing has to be pickled."""

    model_runner: Any
    bench_sets: Any = None
    """The staged sets in turn, without end; made on first use."""

    def time_load(self) -> float:
        """Load the next set as a push's commit does, from memory; the seconds that took."""
        config = self.model_runner.model_config
        if self.bench_sets is None:
            self.bench_sets = cycle([staged(weight_set(config.model, seed)) for seed in (0, 1)])
        tensors = next(self.bench_sets)
        began = time.perf_counter()
        with torch.inference_mode():
            load(self.model_runner.model, config, tensors)
        return time.perf_counter() - began
