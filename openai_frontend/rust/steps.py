"""Engine steps and requests as the bridge reads them: whole as bytes, and decoded as far as it must know them.

vLLM's structs are msgpack arrays, so that a field is known by its position. The names here are vLLM's
(`vllm.v1.engine`); tests/frontend/rust/test_steps.py compares the positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Raw

NIL = Raw(b"\xc0")
ERROR = 3
"""vLLM's FinishReason.ERROR, as it travels."""


class RequestHead(msgspec.Struct, array_like=True, gc=False):
    """The beginning of an EngineCoreRequest."""

    request_id: str


class OutputHead(msgspec.Struct, array_like=True, gc=False):
    """The beginning of an EngineCoreOutput."""

    request_id: str
    new_token_ids: Raw
    new_logprobs: Raw = NIL
    new_prompt_logprobs_tensors: Raw = NIL
    pooling_output: Raw = NIL
    finish_reason: int | None = None


class Unread(msgspec.Struct, gc=False):
    """A map of which nothing is read."""


class StepHead(msgspec.Struct, array_like=True, gc=False):
    """EngineCoreOutputs, but for the fields that the model adds at its end."""

    engine_index: int = 0
    outputs: list[OutputHead] = []
    scheduler_stats: Unread | None = None
    timestamp: float = 0.0
    utility_output: Raw = NIL
    finished_requests: Raw = NIL
    wave_complete: Raw = NIL
    start_wave: Raw = NIL
    weight_version: str | None = None


_raws = msgspec.msgpack.Decoder(list[Raw])
_heads = msgspec.msgpack.Decoder(list[StepHead])
_fields = msgspec.msgpack.Decoder(list[Raw])
_request = msgspec.msgpack.Decoder(RequestHead)


@dataclass(slots=True)
class RawStep:
    """An engine's step: its bytes, and what the bridge reads of it."""

    payload: bytes
    head: StepHead

    @property
    def outputs(self) -> Sequence[OutputHead]:
        return self.head.outputs

    @property
    def scheduler_stats(self) -> Unread | None:
        return self.head.scheduler_stats

    @property
    def weight_version(self) -> str | None:
        return self.head.weight_version

    def of_engine(self, index: int) -> bytes:
        """Its bytes with another engine's index."""
        if index == self.head.engine_index:
            return self.payload
        return msgspec.msgpack.encode([index, *_fields.decode(self.payload)[1:]])


def decode_steps(payload: bytes) -> Iterator[RawStep]:
    """Decode a channel's message. Raises msgspec.MsgspecError."""
    for raw, head in zip(_raws.decode(payload), _heads.decode(payload), strict=True):
        yield RawStep(bytes(raw), head)


def request_id_of(payload: bytes) -> str:
    """The id of an encoded EngineCoreRequest. Raises msgspec.MsgspecError."""
    return _request.decode(payload).request_id


def failed_step(request_id: str, index: int) -> bytes:
    """The step with which engine `index` ends a generation in an error."""
    return msgspec.msgpack.encode([index, [[request_id, [], None, None, None, ERROR]], None, 0.0])


def refused_call(call_id: int, index: int, message: str) -> bytes:
    """The step with which engine `index` answers that it has failed to run a utility method."""
    return msgspec.msgpack.encode([index, [], None, 0.0, [call_id, message, None]])
