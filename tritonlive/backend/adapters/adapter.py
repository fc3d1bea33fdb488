"""One version of one pushed adapter."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest


@dataclass(eq=False)
class Adapter:
    """One version of one adapter."""

    name: str
    version: str
    digest: str
    request: LoRARequest
    num_tensors: int
    num_bytes: int
    staged_at: float = field(default_factory=time.monotonic)
    unused_since: float = field(default_factory=time.monotonic)

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return self.request.lora_name

    @property
    def folder(self) -> Path:
        """The folder with its two files."""
        return Path(self.request.lora_path)

    def result(self) -> dict[str, Any]:
        """The answer to its trainer."""
        return {"name": self.name, "version": self.version, "bytes": self.num_bytes, "tensors": self.num_tensors}
