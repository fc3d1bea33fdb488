"""The local stack: find tritonserver, prepare a model, start Triton and the front end, watch them, stop them.

Importing this package imports neither vLLM nor torch. Its names are looked up on first use, so that the command line
answers `--help` at once, and without the packages that only a server has.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import StackConfig
from .errors import LaunchError, PortTakenError, ProcessDiedError, ReadyTimeoutError, StackCancelled

if TYPE_CHECKING:
    from .stack import Stack

__all__ = [
    "LaunchError",
    "PortTakenError",
    "ProcessDiedError",
    "ReadyTimeoutError",
    "Stack",
    "StackCancelled",
    "StackConfig",
]


def __getattr__(name: str) -> Any:
    """Imports `Stack` on first use: it needs psutil and httpx."""
    if name == "Stack":
        return import_module(".stack", __name__).Stack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
