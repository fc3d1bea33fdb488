"""Names, dtypes and shapes of a checkpoint's tensors, read off its safetensors headers."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sync.dtypes import CASTABLE
from sync.sources import SAFETENSORS_DTYPES


def read_parameters(model: str, revision: str | None, served_dtype: str) -> list[dict[str, Any]]:
    """[{"name", "dtype", "shape"}, ...] sorted by name, without reading any tensor's data.

    Raises OSError when the checkpoint has no safetensors files at hand.
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    index = folder / "model.safetensors.index.json"  # a folder may hold a second layout of the same weights
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else None
    files = sorted(path for path in folder.glob("*.safetensors") if named is None or path.name in named)
    if not files:
        raise OSError(f"no *.safetensors in {folder.name}")
    parameters: list[dict[str, Any]] = []
    for path in files:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                piece = tensors.get_slice(name)
                stored = piece.get_dtype()
                dtype = SAFETENSORS_DTYPES.get(stored, stored)
                if dtype in CASTABLE:  # vLLM casts it to the one it serves
                    dtype = served_dtype
                parameters.append({"name": name, "dtype": dtype, "shape": piece.get_shape()})
    return sorted(parameters, key=lambda parameter: parameter["name"])
