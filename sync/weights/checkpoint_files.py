"""The checkpoint files that an engine was started with, and a fingerprint that shows whether they changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from .checkpoint_source import checkpoint_folder

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's folder; None when the model's files are not on this machine."""

    folder: Path | None

    @classmethod
    def find(cls, model_config: Any) -> "CheckpointFiles":
        """The folder of vLLM's ModelConfig: a path, or a model hub's snapshot in the cache."""
        path = Path(model_config.model)
        if path.is_file():
            return cls(path.parent)
        try:
            return cls(checkpoint_folder(model_config.model, model_config.revision))
        except (OSError, ValueError):
            return cls(None)

    def fingerprint(self) -> str | None:
        """16 hex digits over name, size, inode and time of every file with weights; None when there are none.

        It reads no weights. Rewriting a file changes the fingerprint.
        """
        if self.folder is None:
            return None
        try:
            lines = [
                f"{path.name} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns}"
                for path in sorted(self.folder.iterdir())
                if path.suffix in WEIGHT_SUFFIXES and (stat := path.stat())
            ]
        except OSError:  # the folder may be changing right now
            return None
        return xxhash.xxh3_64_hexdigest("\n".join(lines).encode()) if lines else None
