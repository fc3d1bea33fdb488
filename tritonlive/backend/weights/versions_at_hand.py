"""Which of a replica's versions every rank could load now, as the workers said last."""

from collections.abc import Sequence
from typing import Any

from vllm.config import ModelConfig

from sync.weights.checkpoint_files import CheckpointFiles
from tritonlive.backend.tensors import Conflict

from .served_versions import ServedVersions
from .worker_calls import RankStatus, common_versions


class VersionsAtHand:
    """Noted from the workers' answers, and told by the names that the versions have now."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}  # by id; None for a checkpoint on disk
        self._checkpoints: dict[str, str | None] = {}  # ids of checkpoints: the fingerprint of their files

    def note(self, statuses: Sequence[RankStatus]) -> None:
        try:
            self._digests = common_versions(statuses)
        except Conflict:  # ranks that mean other tensors by an id cannot load any
            self._digests = {}
        checkpoints = [status.fields["checkpoint"] for status in statuses]
        self._checkpoints = {each["id"]: each["fingerprint"] for each in checkpoints}

    def forget(self) -> None:
        """The engine has died."""
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
        """Whether the files of a checkpoint are still what was loaded; true for what the workers keep themselves."""
        if update_id not in self._checkpoints:
            return True
        return CheckpointFiles.find(model_config).fingerprint() == self._checkpoints[update_id]
