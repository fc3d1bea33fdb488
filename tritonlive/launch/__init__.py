"""The local stack: find tritonserver, prepare a model, start Triton and the front end, watch them, stop them.

Importing this package imports neither vLLM nor torch: the launcher has to answer at once.
"""

from .config import StackConfig
from .errors import LaunchError, PortTakenError, ProcessDiedError, ReadyTimeoutError, StackCancelled
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
