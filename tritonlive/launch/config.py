"""The configuration of a stack."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonlive.wire.environment import CACHE_DIR_VARIABLE

from .errors import LaunchError

MODEL_REPOSITORY = (Path(__file__).parents[1] / "model_repository").resolve()
"""Triton's model repository. In a checkout it is a link to the top level's; a wheel carries the files there."""


def default_cache_dir() -> Path:
    """`$TRITONLIVE_CACHE_DIR`, else `tritonlive` in the user's cache directory."""
    if configured := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonlive"


def resolved(model: str) -> str:
    """A local path made absolute; a hub id as it is. Raises LaunchError if it is a path that does not exist."""
    path = Path(model).expanduser()
    if path.exists():
        return str(path.resolve())
    if model.startswith((".", "/", "~")):
        raise LaunchError(f"--model {model}: no such directory")
    return model


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """One local stack.

    A port of 0 picks a free one. Without a control key one is generated. Without an API key inference needs none, and
    all addresses must be of this machine.
    """

    model: str
    """Directory or hub id of the model. Empty: the engine's arguments are those of the repository's model.json."""
    served_model_name: str | None = None
    extra_args: tuple[str, ...] = ()
    """vLLM arguments in `vllm serve`'s spelling. The model and the front end get all and use what is theirs."""
    frontend_args: tuple[str, ...] = ()
    """Arguments for the front end alone."""
    triton_args: tuple[str, ...] = ()
    """Arguments for tritonserver alone."""
    host: str = "127.0.0.1"
    """Address the front end binds."""
    triton_host: str = "127.0.0.1"
    """Address of Triton's gRPC and metrics."""
    triton_http_host: str = "127.0.0.1"
    """Address of Triton's HTTP port, which a hostile request can crash (docs/security.md)."""
    triton_http: bool = True
    """Whether Triton has an HTTP port; nothing of ours needs it."""
    allow_network_without_key: bool = False
    """Start although other machines may reach a port and inference needs no key."""
    port: int = 0
    triton_http_port: int = 0
    triton_grpc_port: int = 0
    triton_metrics_port: int = 0
    rust_port: int | None = None
    """Port of vLLM's Rust front end, on `host`; None: there is none."""
    workers: int = 1
    """Front-end processes."""
    api_key: str | None = None
    control_key: str | None = None
    kv_cache_space_gib: int | None = None
    """`VLLM_CPU_KVCACHE_SPACE`; None takes it from the environment, else 2."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment for both processes; overrides everything that the launcher sets."""
    tritonserver: Path | None = None
    """The server binary; None searches for one: see `tritonlive.launch.tritonserver.find`."""
    model_repository: Path = MODEL_REPOSITORY
    cache_dir: Path = field(default_factory=default_cache_dir)
    restart: bool = True
    """Whether `tritonlive serve` starts tritonserver or the front end again when it has failed."""
    log_dir: Path | None = None
    """None is `logs/<front-end port>` in the cache directory."""
