"""The gloo weight transfer engine inside vLLM's workers (backend "gloo", registered by plugin.py).

Same life cycle as vLLM's own engines, with one difference: weights are staged in host memory first. `init`, `start` and
`update` return at once and do not touch the model; `finish` loads what is staged, and only that pauses generation. So a
failure before `finish` leaves the old weights serving.

With several workers, vLLM loses count of their answers when one of them raises. So what can be told to the trainer
over the group is told there, and raised here only where it cannot be.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger

from .check import ServedModel, fit
from .errors import CheckError, SourceError, TransferError
from .gloo import Membership
from .gloo_receiver import Announcement, GlooReceiver
from .kept import KeptWeights
from .loading import load
from .sources import CheckpointSource, ParamMeta, TensorSource
from .update import Update

logger = init_logger(__name__)

# `finish` comes after the trainer has heard that all is staged; what is left is a thread's last few instructions.
TAKE_TIMEOUT_S = 5.0


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """How to reach the trainer, which is rank 0 and hosts the rendezvous."""

    master_address: str
    master_port: int
    world_size: int
    secret: str = field(repr=False)
    """Proves to the trainer that this worker was called in (Membership)."""
    rank_offset: int = 1
    timeout_s: float = 300.0
    keep_previous: bool = True
    num_devices: int = 1
    """Of the group (Membership); a trainer that does not name it has one."""
    local_address: str = ""
    """The trainer's Unix socket (Membership)."""


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What comes next: every tensor's name, dtype ("bfloat16") and shape, in the order they are sent.

    With `abort` (the reason) nothing comes: what is staged is dropped, and `finish_weight_update` will load nothing.
    With `rollback` nothing comes either: `finish_weight_update` will load the previous version.
    """

    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    abort: str | bool = False
    rollback: bool = False

    def metas(self) -> list[ParamMeta]:
        """Raises ValueError, naming the field, when they are not what they should be."""
        if not len(self.names) == len(self.dtype_names) == len(self.shapes):
            raise ValueError(
                f"names, dtype_names and shapes must be equally long, "
                f"got {len(self.names)}, {len(self.dtype_names)} and {len(self.shapes)}"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: one is there twice")
        if any(size < 0 for shape in self.shapes for size in shape):
            raise ValueError("shapes: sizes must not be negative")
        zipped = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta.from_names(name, dtype, shape) for name, dtype, shape in zipped]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives checkpoint-format weights over gloo, in the background, and loads them at once."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    supports_draft_weight_update = False

    _receiver: GlooReceiver | None = None
    _is_aborted = False
    _is_rollback = False

    @cached_property
    def kept(self) -> KeptWeights:
        return KeptWeights(lambda: checkpoint(self.model_config))

    @cached_property
    def served(self) -> ServedModel | None:
        """Read once: an update's announcement is looked at between two steps of the engine."""
        return served_model(self.model_config)

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Begin to join the trainer's group; a trainer connected before is let go."""
        self.shutdown()
        parallel = self.parallel_config
        worker_rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._receiver = GlooReceiver(
            Membership(
                init_info.master_address,
                init_info.master_port,
                init_info.rank_offset + worker_rank,
                init_info.world_size,
                init_info.secret,
                init_info.timeout_s,
                init_info.num_devices,
                init_info.local_address,
            ),
            self.kept.pool,
        )
        self.kept.is_kept = init_info.keep_previous

    def start_weight_update(self) -> None:
        """Nothing to prepare: the model is touched in `finish_weight_update` only."""
        self._is_aborted = self._is_rollback = False
        if self._receiver is not None:
            self._receiver.drop()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, without its wait for the device: nothing has gone there yet."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Tell the receiver what comes. What is wrong with it, the trainer hears over the group."""
        if update_info.abort:
            self._is_aborted = True
            if self._receiver is not None:
                self._receiver.drop()
            return
        if update_info.rollback:
            self._is_rollback = True
            return
        if self._receiver is None:
            return  # a trainer of a group that was given up: it sees its connection closed, and `finish` raises
        try:
            metas = update_info.metas()
            objection = self._objection(metas)
        except ValueError as error:
            metas, objection = [], str(error)
        self._receiver.announce(Announcement(metas, objection))

    def finish_weight_update(self) -> None:
        """Load what is staged. Raises TransferError, with the model untouched, when that is not a whole update."""
        if self._is_aborted:
            return
        try:
            update = None if self._is_rollback else self._staged()
            tensors = self.kept.before() if update is None else update.tensors
        except TransferError as error:
            # The replica's state machine reads these words: it may serve on.
            raise TransferError(f"{error}; the model is untouched") from error
        try:
            load(self.model, self.model_config, tensors)
        except BaseException:
            self.kept.is_spoiled = True
            raise
        if update is None:
            self.kept.roll_back()
        else:
            self.kept.commit(update)

    def _staged(self) -> Update:
        if self._receiver is None:
            raise TransferError("gloo: no trainer is connected; call init_weight_transfer_engine first")
        return self._receiver.take(TAKE_TIMEOUT_S)

    def shutdown(self) -> None:
        """Let go of the trainer; ends within seconds even if it died in the middle of a message."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def _objection(self, metas: list[ParamMeta]) -> str:
        """Why these tensors are not the served model's; empty when they are, or when its checkpoint is not at hand."""
        if self.served is None:
            return ""
        announced = TensorSource({m.name: torch.empty(m.shape, dtype=m.dtype, device="meta") for m in metas})
        try:
            fit(announced, self.served)
        except CheckError as error:
            return str(error)
        return ""


def served_model(model_config: Any) -> ServedModel | None:
    """The tensors of the checkpoint that vLLM was started with; None when it is not at hand as safetensors."""
    source = checkpoint(model_config)
    if source is None:
        return None
    tied = ["lm_head.weight"] if getattr(model_config.hf_text_config, "tie_word_embeddings", False) else []
    return ServedModel(str(model_config.model), {meta.name: meta for meta in source.metadata()}, tied)


def checkpoint(model_config: Any) -> CheckpointSource | None:
    """The checkpoint that vLLM was started with; None when it is not at hand as safetensors."""
    folder = Path(model_config.model)
    try:
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(model_config.model, revision=model_config.revision, local_files_only=True))
        source = CheckpointSource(folder)
        source.metadata()
    except (OSError, SourceError, ValueError) as error:
        logger.info("gloo: the checkpoint's tensors are not known, so pushes are not compared with them: %s", error)
        return None
    return source
