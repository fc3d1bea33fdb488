"""What the model and its compiler process send each other: frames of msgpack on a socket."""

import struct
from typing import Any

import msgspec

HEADER = struct.Struct("!I")


class Setup(msgspec.Struct, tag=True):
    """First message to the process."""

    engine_argv: list[str]
    """The engine's command line, for the model's tokenizer and vLLM's settings."""


class Ready(msgspec.Struct, tag=True):
    """The process has its tokenizer and compilers."""


class Job(msgspec.Struct, tag=True):
    """Compile a grammar."""

    number: int
    fields: dict[str, Any]
    """StructuredOutputsParams."""
    memory_bytes: int
    wall_s: float
    cpu_s: float
    """Processor time; 0 for no limit of it."""


class Cancel(msgspec.Struct, tag=True):
    """Nobody waits for the job any more: end it."""

    number: int


class Compiled(msgspec.Struct, tag=True):
    """The grammar can be compiled, and allows at least one token."""

    backend: str
    """The name of the compiler that vLLM chose."""


class Rejected(msgspec.Struct, tag=True):
    """The grammar cannot be compiled."""

    reason: str


class Ended(msgspec.Struct, tag=True):
    """A job has ended."""

    number: int
    result: Compiled | Rejected | None
    """None if a signal ended its process: SIGPROF and SIGALRM are its limits of processor and wall time."""
    signal: int = 0


ToProcess = Setup | Job | Cancel
FromProcess = Ready | Ended


def frame(message: Any) -> bytes:
    """The message's length, then the message."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body
