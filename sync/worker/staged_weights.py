"""Weights that are staged in host memory in the background, and then loaded in one step (backend "gloo").

`connect`, `start` and `update` return at once and do not touch the model; only `load` pauses generation. After any
failure before `load` the old weights keep serving.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from vllm.config import VllmConfig

from sync.errors import CheckError, TransferError
from sync.transport.gloo import Membership
from sync.weights.check import ServedModel, fit
from sync.weights.sources import TensorSource
from sync.weights.weight_source import ParamMeta
from sync.worker.gloo_receiver import Announcement, GlooReceiver
from sync.worker.staged_update import StagedUpdate
from sync.worker.weight_history import merge
from sync.worker.worker_weights import WorkerError, WorkerWeights
from tritonlive.wire.outcomes import Code

# `prepare` follows the trainer's confirmation that all is staged, so the receiving thread is nearly done.
TAKE_TIMEOUT_S = 5.0
# A worker that stages for others cannot reuse the two versions that they still hold.
MAX_SPARES = 3


@dataclass
class GlooInitInfo:
    """How to reach the trainer, which is rank 0 of the group."""

    master_address: str
    master_port: int
    world_size: int
    secret: str = field(repr=False)
    """Proves that this worker was called into the group (gloo.Membership)."""
    rank_offset: int = 1
    timeout_s: float = 300.0
    keep_previous: bool = True
    num_devices: int = 1
    local_address: str = ""


@dataclass
class GlooUpdateInfo:
    """The announced tensors: each one's name, dtype ("bfloat16") and shape.

    partial: all other tensors keep their values.
    """

    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    partial: bool = False

    def metas(self) -> list[ParamMeta]:
        """The fields as ParamMeta. Raises ValueError with the name of an invalid field."""
        if not len(self.names) == len(self.dtype_names) == len(self.shapes):
            raise ValueError(
                f"names, dtype_names and shapes must be equally long, "
                f"got {len(self.names)}, {len(self.dtype_names)} and {len(self.shapes)}"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: contains a name twice")
        if any(size < 0 for shape in self.shapes for size in shape):
            raise ValueError("shapes: sizes must not be negative")
        zipped = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta.from_names(name, dtype, shape) for name, dtype, shape in zipped]


class StagedWeights(WorkerWeights):
    """The weights of a worker whose updates arrive over gloo or through shared memory."""

    def __init__(self, vllm_config: VllmConfig, model: torch.nn.Module) -> None:
        super().__init__(vllm_config, model)
        self._receiver: GlooReceiver | None = None
        self._prepared: StagedUpdate | None = None
        self._is_partial = False

    @cached_property
    def served(self) -> ServedModel | None:
        """The tensors that this rank loads; None when they are unknown."""
        answer = self.own_parameters
        return ServedModel.from_answer("this worker", answer) if answer["parameters"] is not None else None

    def connect(self, init_info: dict[str, Any]) -> None:
        self.disconnect()
        try:
            info = GlooInitInfo(**init_info)
        except TypeError as error:
            raise WorkerError(Code.REJECTED, f"init_info: {error}") from None
        parallel = self.vllm_config.parallel_config
        self.history.keeps_tensors = info.keep_previous
        self.pool.max_spares = MAX_SPARES if info.keep_previous else 1
        self._receiver = GlooReceiver(
            Membership(
                info.master_address,
                info.master_port,
                info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank,
                info.world_size,
                info.secret,
                info.timeout_s,
                info.num_devices,
                info.local_address,
            ),
            self.pool,
        )

    def disconnect(self) -> None:
        """See the base class. Ends within seconds, even if the trainer died in the middle of a message."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def start(self) -> None:
        self.abort()

    def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Announce an update. A rejection goes to the trainer over its link, and is the result of `prepare` too."""
        if self._receiver is None:
            raise WorkerError(Code.REJECTED, "no trainer is connected; call init_weight_transfer_engine first")
        if isinstance(update_info, list):
            raise WorkerError(Code.REJECTED, "update_info: expected one object for all ranks")
        reason = ""
        try:
            info = GlooUpdateInfo(**update_info)
            metas = info.metas()
            self._is_partial = info.partial
            reason = self._reject_reason(metas)
        except (TypeError, ValueError) as error:
            metas, reason = [], str(error)
        self._receiver.announce(Announcement(metas, reason))

    def prepare(self) -> dict[str, Any]:
        if self._prepared is None:
            if self._receiver is None:
                raise WorkerError(Code.REJECTED, "no trainer is connected; call init_weight_transfer_engine first")
            try:
                self._prepared = self._receiver.take(TAKE_TIMEOUT_S)
            except TransferError as error:
                raise WorkerError(Code.REJECTED, str(error)) from error
        update = self._prepared
        is_unchanged = not self._is_partial and self.history.is_unchanged(update)
        # The digest covers the base's tensors too: ranks with different bases must not commit one partial push.
        staged = merge("", update, self.history.current_entry if self._is_partial else None)
        return {"is_unchanged": is_unchanged, "digest": staged.digest}

    def load(self, update_id: str, keep: Sequence[str]) -> None:
        """Add the update to the history, even if loading it fails, and load it."""
        if self._prepared is None:
            self.prepare()
        update, self._prepared = self._prepared, None
        if update is None:
            raise WorkerError(Code.REJECTED, "no update is staged")
        base = self.history.current_entry if self._is_partial else None
        if self._is_partial and (base is None or base.tensors is None):
            self.pool.release(update.memory)
            raise WorkerError(Code.REJECTED, self._why_no_base())
        entry = self.history.add(update_id, update, base=base)
        self.history.keep_only([*keep, update_id])
        try:
            self._replace(update_id, dict(entry.tensors or {}).items())
        finally:
            if not self.history.keeps_tensors:
                self.history.drop_tensors()

    def adopt(self) -> None:
        self.abort()

    def abort(self) -> None:
        update, self._prepared = self._prepared, None
        if update is not None:
            self.pool.release(update.memory)
        if self._receiver is not None:
            self._receiver.drop()

    def _reject_reason(self, metas: Sequence[ParamMeta]) -> str:
        """Why the served model does not load these tensors; empty when it does, or when its names are unknown."""
        base = self.history.current_entry
        if self._is_partial and (base is None or base.tensors is None):
            return self._why_no_base()
        if self.served is None:
            return ""
        announced = TensorSource({m.name: torch.empty(m.shape, dtype=m.dtype, device="meta") for m in metas})
        try:
            fit(announced, self.served, partial=self._is_partial)
        except CheckError as error:
            return str(error)
        return ""

    def _why_no_base(self) -> str:
        if not self.history.keeps_tensors:
            return "a partial push needs the tensors of the previous one: push with keep_previous=True"
        return "the model's weights are not from a push; push a full set before a partial one"
