"""The weights of one vLLM worker, and the operations on them.

There are two kinds: weights that are staged in host memory and loaded in one step (staged_weights.py), and weights that
vLLM's own engines write into the model as they arrive (streamed_weights.py). Both record after each operation which
version the model holds, or that it is unknown.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.weight_checksum import zero_weights

from sync.errors import SyncError, TransferError
from sync.transport.worker.memory import MemoryPool
from sync.weights.checkpoint_files import CheckpointFiles
from tritonlive.wire.outcomes import CHECKPOINT_ID, Code

from .loading import load
from .served_parameters import weight_parameters
from .weight_history import WeightHistory

logger = init_logger(__name__)


class WorkerError(SyncError):
    """An operation failed at this worker. `code` is its effect on the model."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerWeights(ABC):
    """One worker's weights. Methods raise WorkerError; any other error counts as Code.FAILED."""

    def __init__(self, vllm_config: VllmConfig, model: torch.nn.Module) -> None:
        self.vllm_config = vllm_config
        self.model = model
        self.pool = MemoryPool()
        self.history = WeightHistory(self.pool)
        self._files = CheckpointFiles.find(vllm_config.model_config)
        # Computed after vLLM has loaded the files: a write during that load goes unnoticed.
        self._fingerprint = None if self._is_dummy else self._files.fingerprint()
        self._checkpoint_id = CHECKPOINT_ID  # of the files with that fingerprint

    # ---- tensors --------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Any]:
        """`parameters`: the tensors of a full push, as this rank's model loads them."""
        return {"parameters": self.own_parameters}

    @cached_property
    def own_parameters(self) -> dict[str, Any]:
        """Computed once, between two steps of the engine."""
        return weight_parameters(self.model, self.vllm_config)

    # ---- an update ------------------------------------------------------------------------------------------------

    @abstractmethod
    def connect(self, init_info: dict[str, Any]) -> None:
        """Join a trainer's group. Leaves a trainer that was connected before."""

    @abstractmethod
    def disconnect(self) -> None:
        """Leave the trainer's group."""

    @abstractmethod
    def start(self) -> None:
        """Begin an update."""

    @abstractmethod
    def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive tensors, or begin to. A list has one entry for each worker, by global rank."""

    @abstractmethod
    def prepare(self) -> dict[str, Any]:
        """Check that the update can be loaded. Returns `is_unchanged` and the update's `digest`."""

    @abstractmethod
    def load(self, update_id: str, keep: Sequence[str]) -> None:
        """Make the update the model's weights. `keep`: ids of older versions to keep for a rollback."""

    @abstractmethod
    def adopt(self) -> None:
        """End an update that is unchanged at every rank, without loading it."""

    @abstractmethod
    def abort(self) -> None:
        """Abort the update in any state. Does nothing without one."""

    # ---- versions -------------------------------------------------------------------------------------------------

    def restore(self, update_id: str) -> None:
        """Load a kept version, or the checkpoint. Raises WorkerError: NOT_HELD with the model untouched, or TOUCHED."""
        if update_id == self.history.current:
            return
        if update_id == self._checkpoint_id:
            if not self._is_checkpoint_at_hand():
                raise WorkerError(Code.NOT_HELD, self._why_no_checkpoint())
            self.reload(update_id)
            return
        try:
            tensors = self.history.require(update_id)
        except TransferError as error:
            raise WorkerError(Code.NOT_HELD, str(error)) from None
        self._replace(update_id, tensors.items())

    def reload(self, update_id: str) -> None:
        """Load the checkpoint's files as they are now; from then on `update_id` means these files.

        Raises WorkerError: NOT_HELD, or TOUCHED. After an error the checkpoint's id keeps its old meaning.
        """
        loader: Any = get_model_loader(self.vllm_config.load_config)
        if not hasattr(loader, "get_all_weights"):
            load_format = self.vllm_config.load_config.load_format
            raise WorkerError(Code.NOT_HELD, f"the engine was started with --load-format {load_format}: no weights")
        fingerprint = self._files.fingerprint()
        self._replace(update_id, loader.get_all_weights(self.vllm_config.model_config, self.model))
        if self._files.fingerprint() != fingerprint:
            self.history.current = None
            raise WorkerError(Code.TOUCHED, "the checkpoint's files were written while they were loaded")
        self._checkpoint_id, self._fingerprint = update_id, fingerprint

    def reset(self) -> None:
        """Zero the weights, as vLLM's weight checker does to prove that a push writes every tensor."""
        self.history.current = None
        zero_weights(self.model)

    def forget(self) -> None:
        """Forget the current version: something else will change the model's weights (sleep, wake)."""
        self.history.current = None

    def report(self) -> dict[str, Any]:
        """`current`: the id of the version that the model holds, or None; `kept` versions; `checkpoint` on disk."""
        return {
            "current": self.history.current,
            "kept": self.history.describe(),
            "checkpoint": {
                "id": self._checkpoint_id,
                "fingerprint": self._fingerprint,
                "is_loadable": self._is_checkpoint_at_hand(),
            },
        }

    def _replace(self, update_id: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load a full set of weights. Raises WorkerError TOUCHED; the model's version is unknown then."""
        self.history.current = None
        try:
            load(self.model, self.vllm_config.model_config, weights)
        except Exception as error:  # from the model's loader or the device
            logger.exception("weights: loading %s failed", update_id)
            raise WorkerError(Code.TOUCHED, f"loading failed: {error}") from error
        self.history.current = update_id

    @property
    def _is_dummy(self) -> bool:
        return self.vllm_config.load_config.load_format == "dummy"

    def _is_checkpoint_at_hand(self) -> bool:
        """Whether the files that vLLM loaded at its start, or at the last reload, are unchanged on disk."""
        return self._fingerprint is not None and self._files.fingerprint() == self._fingerprint

    def _why_no_checkpoint(self) -> str:
        if self._is_dummy:
            return "the engine was started with --load-format dummy: there is no checkpoint to reload"
        if self._fingerprint is None:
            return "the checkpoint's files are not on this machine"
        return "the checkpoint's files have changed since they were loaded; reload names the new ones"
