"""What is read of an engine's step here; who decodes the step may read more of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol


class StepOutput(Protocol):
    """One generation's part of a step; vLLM's EngineCoreOutput is one."""

    @property
    def request_id(self) -> str: ...
    @property
    def finish_reason(self) -> Any:
        """None while the generation goes on."""


class Step(Protocol):
    """vLLM's EngineCoreOutputs is one."""

    @property
    def outputs(self) -> Sequence[StepOutput]: ...
    @property
    def scheduler_stats(self) -> Any: ...
    @property
    def weight_version(self) -> str | None:
        """The weights that made its tokens."""


DecodeSteps = Callable[[bytes], Iterable[Any]]
"""Decodes a channel's message: a msgpack list of EngineCoreOutputs. Yields Steps."""
