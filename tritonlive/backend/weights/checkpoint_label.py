"""Names of the weights that an engine reads from disk."""

from vllm.config import ModelConfig

from sync.weights.checkpoint_files import CheckpointFiles
from tritonlive.backend.tensors import Conflict
from tritonlive.wire.versions import FIRST_VERSION


class CheckpointLabel:
    """Gives the checkpoint vLLM's name "default" only while its files are those that the first engine found."""

    def __init__(self) -> None:
        self._first_fingerprint: str | None = None

    def at_start(self, model_config: ModelConfig) -> str:
        """The label of a newly started engine's weights: "default", or "default-<fingerprint>" if files changed."""
        found = fingerprint(model_config)
        if self._first_fingerprint is None:
            self._first_fingerprint = found
        first = self._first_fingerprint
        return FIRST_VERSION if first is None or first == found else f"{FIRST_VERSION}-{(found or 'unknown')[:8]}"

    def at_reload(self, label: str | None, model_config: ModelConfig) -> str:
        """The label after a reload: `label`, else "default". Raises Conflict without a label if files changed."""
        found = fingerprint(model_config)
        if label is not None:
            return label
        if self._first_fingerprint is not None and self._first_fingerprint != found:
            raise Conflict(
                "reload: the checkpoint's files have changed since the engine started; name these weights: "
                "weight_version"
            )
        return FIRST_VERSION


def fingerprint(model_config: ModelConfig) -> str | None:
    """Fingerprint of the checkpoint's files as they are now; None when they cannot be found."""
    return CheckpointFiles.find(model_config).fingerprint()
