"""The versions that every rank can load now, by the workers' last answers."""

from collections.abc import Sequence
from typing import Any

from vllm.config import ModelConfig

from sync.weights.checkpoint_files import CheckpointFiles
from tritonlive.backend.tensors import Conflict

from .served_versions import ServedVersions
from .worker_calls import RankStatus, common_versions


class LoadableVersions:
    """Notes ids and digests from the workers' answers, and lists them under the versions' current labels."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}  # by id; None for a checkpoint on disk
        self._checkpoints: dict[str, str | None] = {}  # by id: fingerprint of the files

    def note(self, statuses: Sequence[RankStatus]) -> None:
        """Note what all ranks hold."""
        try:
            self._digests = common_versions(statuses)
        except Conflict:  # ranks that hold different tensors under one id can load none
            self._digests = {}
        checkpoints = [status.fields["checkpoint"] for status in statuses]
        self._checkpoints = {each["id"]: each["fingerprint"] for each in checkpoints}

    def forget(self) -> None:
        """Forget everything: the engine has died."""
        self._digests, self._checkpoints = {}, {}

    def describe(self, versions: ServedVersions, model_config: ModelConfig) -> list[dict[str, Any]]:
        """`weight_version`, `update_id` and `digest` (or None) of each, oldest first."""
        return [
            {
                "weight_version": version.label,
                "update_id": version.update_id,
                "digest": self._digests[version.update_id],
            }
            for version in (*versions.earlier, versions.serving)
            if version.update_id in self._digests and self._is_on_disk(version.update_id, model_config)
        ]

    def _is_on_disk(self, update_id: str, model_config: ModelConfig) -> bool:
        """Whether a checkpoint's files are still those that were loaded. True for versions that the workers keep."""
        if update_id not in self._checkpoints:
            return True
        return CheckpointFiles.find(model_config).fingerprint() == self._checkpoints[update_id]
