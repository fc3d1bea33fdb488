"""Names, dtypes and shapes of a checkpoint's tensors, read from its safetensors headers."""

from typing import Any

from sync.errors import SourceError
from sync.weights.checkpoint_source import find_checkpoint


def read_parameters(model: str, revision: str | None) -> list[dict[str, Any]]:
    """[{"name", "dtype", "shape"}, ...] sorted by name, with the dtypes of the files. Reads no tensor data.

    Raises OSError when the checkpoint has no local safetensors files.
    """
    try:
        metas = find_checkpoint(model, revision).metadata()
    except SourceError as error:
        raise OSError(str(error)) from error
    return [{"name": meta.name, "dtype": meta.dtype_name, "shape": list(meta.shape)} for meta in sorted(metas)]
