"""Real vLLM models, and the workers' weight operations over them, without vLLM's scheduler.

Each rank has a model of its own that vLLM built and loaded. The ranks hold whole copies rather than shards: what is
tested is that all of them hold what the label says, and that is told by comparing each with the same digest.
"""

import copy
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, WeightTransferConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model
from vllm.v1.worker.cpu_model_runner import _set_torch_accelerator_to_noop

from sync.worker.gloo_worker import GlooWeightTransferEngine
from sync.worker.loading import load
from sync.worker.staged_weights import StagedWeights
from sync.worker.worker_extension import WeightOperations

from .contents import Content, loaded_digest

Tensors = Iterable[tuple[str, torch.Tensor]]


class LoadFailed(RuntimeError):
    """Error of a rank's loader, raised when a sequence asks for it."""


class Rank:
    """One rank's model, which outlives the engines of its replica: a restart loads it again."""

    def __init__(self, vllm_config: VllmConfig, rank: int, world_size: int) -> None:
        self.vllm_config = copy.copy(vllm_config)
        self.vllm_config.parallel_config = copy.copy(vllm_config.parallel_config)
        self.vllm_config.parallel_config.rank = rank
        self.vllm_config.parallel_config.world_size = world_size
        # vLLM notes the layers of a model by name, each name once.
        self.vllm_config.compilation_config = copy.copy(vllm_config.compilation_config)
        self.vllm_config.compilation_config.static_forward_context = {}
        with set_current_vllm_config(self.vllm_config):
            self.model = get_model(vllm_config=self.vllm_config)

    def load(self, weights: Tensors) -> None:
        with set_current_vllm_config(self.vllm_config):
            load(self.model, self.vllm_config.model_config, weights)

    def digest(self) -> str:
        return loaded_digest(self.model)


class ModelRunner:
    """vLLM's, as far as weight operations need it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def get_model(self) -> torch.nn.Module:
        return self._model

    def reset_lora_state(self) -> None:
        """No adapters here."""


class Worker(WeightOperations):
    """One rank's worker, new with every engine: real weight operations, real staging, a real gloo receiver."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank.vllm_config.parallel_config.rank
        self.vllm_config = rank.vllm_config
        self.model = rank.model
        self.model_runner = ModelRunner(rank.model)
        self.weight_transfer_engine = GlooWeightTransferEngine(
            WeightTransferConfig(backend="gloo"), rank.vllm_config, torch.device("cpu"), rank.model
        )

    @property
    def weights(self) -> StagedWeights:
        return self.weight_transfer_engine.weights

    def run(self, operation: str, arguments: dict[str, Any], fails: str | None = None) -> dict[str, Any]:
        """A weight operation; `fails` says how this rank fails in it.

        "before", "half" or "after": the model's own loader does. "rejected" or "failed": the worker answers so, and
        does nothing.
        """
        if fails is None:
            return self.weight_operation(operation, arguments)
        if fails in ("rejected", "failed"):
            refusal = {"rank": self.rank, "code": fails, "message": "as the sequence wants it"}
            return refusal | self.weights.report()
        model: Any = self.model
        own = model.load_weights

        def load_weights(weights: Tensors) -> Any:
            if fails == "before":
                raise LoadFailed("out of memory before the first tensor")
            tensors = list(weights)
            own(islice(tensors, len(tensors) // 2) if fails == "half" else iter(tensors))
            raise LoadFailed(f"out of memory ({fails})")

        model.load_weights = load_weights
        try:
            return self.weight_operation(operation, arguments)
        finally:
            del model.load_weights


class Ranks:
    """Builds ranks over one checkpoint, and knows the digest that a content has once it is loaded."""

    def __init__(self, checkpoint: Path) -> None:
        _set_torch_accelerator_to_noop()  # as vLLM's model runner does on a CPU
        self._vllm_config = EngineArgs(
            model=str(checkpoint),
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
            weight_transfer_config=WeightTransferConfig(backend="gloo"),
        ).create_engine_config()
        with set_current_vllm_config(self._vllm_config), tempfile.TemporaryDirectory() as folder:
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
        self._reference = Rank(self._vllm_config, 0, 1)
        self._contents: dict[str, Content] = {}
        self._digests: dict[str, str] = {}

    def build(self, world_size: int) -> list[Rank]:
        return [Rank(self._vllm_config, rank, world_size) for rank in range(world_size)]

    def digest_of(self, content: Content) -> str:
        """Digest of a model that has loaded the content; computed once."""
        if content.digest not in self._digests:
            self._reference.load(content.tensors.items())
            self._digests[content.digest] = found = self._reference.digest()
            self._contents[found] = content
        return self._digests[content.digest]

    def content_of(self, digest: str) -> Content | None:
        """The content that a model with this digest has loaded; None if it is unknown."""
        return self._contents.get(digest)


def shorten_polls(modules: Iterable[Any], seconds: float = 0.02) -> Iterator[str]:
    """Have waits in these modules look more often whether they are over; yields the names that were changed."""
    for module in modules:
        if hasattr(module, "POLL_S"):
            module.POLL_S = seconds
            yield module.__name__
