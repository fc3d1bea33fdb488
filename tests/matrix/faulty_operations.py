"""A worker whose model's loader breaks half-way when a file says so (`--worker-extension-cls`).

The file is named by FAULT_FILE and holds a rank.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from sync.worker.worker_extension import WeightOperations

FAULT_FILE = "TRITONLIVE_TEST_FAULT_FILE"
NUM_GOOD_TENSORS = 5


class FaultyOperations(WeightOperations):
    """Fails on one rank, like an out-of-memory error in the middle of a load."""

    def weight_operation(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        worker: Any = self
        parallel = worker.vllm_config.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + worker.rank
        path = Path(os.environ[FAULT_FILE])
        if operation != "load" or not path.is_file() or int(path.read_text()) != rank:
            return super().weight_operation(operation, arguments)
        model = worker.model_runner.get_model()
        load_weights = model.load_weights
        model.load_weights = lambda weights: load_weights(breaking(weights))
        try:
            return super().weight_operation(operation, arguments)
        finally:
            del model.load_weights


def breaking(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for number, pair in enumerate(weights):
        if number == NUM_GOOD_TENSORS:
            raise RuntimeError("out of memory (a test's)")
        yield pair
