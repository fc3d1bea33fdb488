"""An update that has arrived at a worker but is not loaded."""

from dataclasses import dataclass

import torch

from sync.transport.worker.memory import UpdateMemory
from sync.weights.digest import Digests


@dataclass
class StagedUpdate:
    """Checkpoint-format tensors, views of `memory`, in the order announced, and the digest of each."""

    tensors: list[tuple[str, torch.Tensor]]
    digests: Digests
    memory: UpdateMemory | None
