"""vLLM's structs between a front end and the engine core, their encoding, and the enums in them.

The names are vLLM's own. They are gathered here because their modules (`vllm.v1.…`) move between releases.
"""

from typing import Any

import msgspec
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    PauseMode,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.abstract import SLEEP_TAGS
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tritonlive.wire.kept_tokens import KeptTokens

__all__ = [
    "AsyncLLM",
    "EngineCoreEventType",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineDeadError",
    "EngineGenerateError",
    "FinishReason",
    "LogprobsLists",
    "LogprobsTensors",
    "PauseMode",
    "RelayedOutputs",
    "RequestDecoder",
    "OutputsEncoder",
    "SLEEP_TAGS",
    "SchedulerStats",
    "add_kept_tokens",
]

# vLLM's encoder moves arrays above a threshold into frames of their own. A Triton tensor is one frame.
ONE_FRAME = 1 << 62


class RelayedOutputs(EngineCoreOutputs, array_like=True, omit_defaults=True, gc=False):
    """A step on a front end's channel: vLLM's struct with one more field at its end."""

    kept: KeptTokens | None = None


def add_kept_tokens(step: EngineCoreOutputs, kept: KeptTokens) -> RelayedOutputs:
    """`step`, which travels with `kept`."""
    return RelayedOutputs(*msgspec.structs.astuple(step), kept)


class RequestDecoder:
    """Decodes EngineCoreRequests."""

    def __init__(self) -> None:
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def decode(self, payload: bytes) -> EngineCoreRequest:
        """Raises msgspec.MsgspecError, ValueError, TypeError or NotImplementedError for anything else."""
        return self._decoder.decode(payload)


class OutputsEncoder:
    """Encodes a list of EngineCoreOutputs as one frame. Not thread-safe."""

    def __init__(self) -> None:
        self._encoder = MsgpackEncoder(size_threshold=ONE_FRAME)

    def encode(self, steps: list[EngineCoreOutputs]) -> Any:
        """Returns an object with the buffer protocol."""
        (frame,) = self._encoder.encode(steps)
        return frame
