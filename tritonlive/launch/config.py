"""What a stack is made of, before anything runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
TRITON_MODEL = "llm"


def default_cache_dir() -> Path:
    """`$TRITONLIVE_CACHE_DIR`, else `tritonlive` in the user's cache directory."""
    if configured := os.environ.get("TRITONLIVE_CACHE_DIR"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonlive"


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """One local stack. A port of 0 picks a free one; a key of None means made up (control) or none (inference)."""

    model: str
    """Directory or hub id of the model."""
    served_model_name: str | None = None
    extra_args: tuple[str, ...] = ()
    """vLLM arguments (`vllm serve` spelling), given to the Triton model and to the front end; each takes its half."""
    frontend_args: tuple[str, ...] = ()
    """Arguments for the front end alone."""
    triton_args: tuple[str, ...] = ()
    """Arguments for tritonserver alone."""
    host: str = "127.0.0.1"
    """Address the front end binds."""
    triton_host: str = "127.0.0.1"
    """Address tritonserver binds."""
    port: int = 0
    triton_http_port: int = 0
    triton_grpc_port: int = 0
    triton_metrics_port: int = 0
    workers: int = 1
    """Front-end processes."""
    api_key: str | None = None
    control_key: str | None = None
    kv_cache_space_gib: int | None = None
    """`VLLM_CPU_KVCACHE_SPACE`; None takes it from the environment, else 2."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment for both processes; wins over everything the launcher sets."""
    tritonserver: Path | None = None
    """The server binary; None searches, see `tritonlive.launch.tritonserver.find`."""
    model_repository: Path = REPOSITORY_ROOT / "model_repository"
    cache_dir: Path = field(default_factory=default_cache_dir)
    log_dir: Path | None = None
    """None makes `logs/<front-end port>` in the cache directory."""
