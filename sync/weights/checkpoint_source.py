"""Weights on disk: a directory of safetensors files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sync.errors import SourceError

from .dtypes import stored_meta
from .weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch


class CheckpointSource(WeightSource):
    """A directory of safetensors files. Memory holds one tensor at a time."""

    def __init__(self, folder: str | Path) -> None:
        from safetensors import safe_open

        self._open = safe_open
        self._files = checkpoint_files(Path(folder))

    def metadata(self) -> list[ParamMeta]:
        found: list[ParamMeta] = []
        for path in self._files:
            with self._open(path, framework="numpy") as tensors:  # reads the header only; "pt" would import torch
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    piece = tensors.get_slice(name)
                    try:
                        found.append(ParamMeta(name, *stored_meta(piece.get_dtype(), piece.get_shape())))
                    except ValueError as error:
                        raise SourceError(f"{path.name}: {name}: {error}") from None
        return found

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        for path in self._files:
            with self._open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    yield name, tensors.get_tensor(name)


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint. Raises SourceError when there are none.

    An index decides if there is one: a folder may hold the same weights twice, in different layouts.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise SourceError(f"{folder}: {index.name} names files that are not there: {', '.join(missing)}")
        return [folder / shard for shard in shards]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SourceError(f"{folder}: no *.safetensors there; other formats are pickles and are not read")
    return files


def find_checkpoint(model: str, revision: str | None) -> CheckpointSource:
    """The checkpoint that vLLM was started with: a folder, or a model hub's snapshot that was downloaded.

    Raises OSError or ValueError when the snapshot is not on this machine, SourceError when it has no safetensors.
    """
    return CheckpointSource(checkpoint_folder(model, revision))


def checkpoint_folder(model: str, revision: str | None) -> Path:
    """The folder that vLLM read: a path, or a model hub's snapshot. Raises OSError or ValueError when it is missing."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))
