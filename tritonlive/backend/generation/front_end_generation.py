"""One generation of a front end, and those of its tokens that can wait.

A front end that answers a request with one response needs no token before the last. Plain outputs of such a generation
(new tokens and nothing else) are kept here and sent with the next output that is not plain, usually the last. The first
output is never plain: it marks the time of the first token. Kept tokens are counted at once (front_end_channel.py).
"""

import asyncio
from collections.abc import Iterator
from operator import attrgetter, is_

from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tritonlive.backend.responses import Sender
from tritonlive.backend.vllm_seam.messages import EngineCoreOutput, EngineCoreOutputs, add_kept_tokens
from tritonlive.wire.kept_tokens import KeptTokens

# All other fields of an output. Derived from vLLM's struct, so that a field which vLLM adds makes an output not plain.
EXTRAS = tuple(name for name in EngineCoreOutput.__struct_fields__ if name not in ("request_id", "new_token_ids"))
read_extras = attrgetter(*EXTRAS)
NO_EXTRAS = read_extras(EngineCoreOutput("", []))


class FrontEndBatch:
    """The generations of one Triton request, which is closed when the last of them has ended."""

    def __init__(self, sender: Sender, size: int) -> None:
        self.sender = sender
        self._is_ended = False
        self._num_running = size

    def end_one(self) -> list[Sender]:
        """Count a generation that has ended or was refused. Returns the sender to close: only after the last."""
        self._num_running -= 1
        return self.end() if self._num_running == 0 else []

    def end(self) -> list[Sender]:
        """End all generations. Returns the sender to close, unless an earlier call has returned it."""
        was_ended, self._is_ended = self._is_ended, True
        return [] if was_ended else [self.sender]


class FrontEndGeneration:
    """One generation of a batch."""

    def __init__(self, batch: FrontEndBatch, params: SamplingParams | PoolingParams) -> None:
        self.batch = batch
        self.admission: asyncio.Task[None] | None = None
        """Admits the generation's grammar; None when that is done."""
        self.pools = isinstance(params, PoolingParams)
        """Whether it ends with a pooled output instead of tokens."""
        is_text = isinstance(params, SamplingParams)
        # With stop strings the front end needs every token: it finds the stop, and aborts.
        self._is_whole = is_text and params.output_kind is RequestOutputKind.FINAL_ONLY and not params.stop
        self._has_begun = False
        self._kept: EngineCoreOutput | None = None
        self._version: str | None = None  # weights that made the kept tokens
        self._kept_at = 0.0  # when the last of them was made
        self._last_at = 0.0  # when the last output was made, kept or sent
        self.latency = 0.0
        """Seconds between the last two outputs, by the engine's clock."""

    def keeps(self, output: EngineCoreOutput, version: str | None, timestamp: float = 0.0) -> bool:
        """Keep `output`, made by weights `version`, if it is plain. Returns False if it must be sent, after `flush`.

        timestamp: of the step, in seconds of the engine's monotonic clock.
        """
        if not self._is_whole:
            return False
        self.latency, self._last_at = timestamp - self._last_at, timestamp
        if not self._has_begun:
            self._has_begun = True
            return False
        if not all(map(is_, read_extras(output), NO_EXTRAS)):
            return False
        if self._kept is None:
            self._kept, self._version = output, version
        elif self._version == version:
            self._kept.new_token_ids += output.new_token_ids
        else:
            return False
        self._kept_at = timestamp
        return True

    @property
    def kept(self) -> tuple[float, int] | None:
        """When the last kept token was made, and how many are kept; None if none is."""
        return None if self._kept is None else (self._kept_at, len(self._kept.new_token_ids))

    def flush(self, into: EngineCoreOutput | None = None, version: str | None = None) -> Iterator[EngineCoreOutputs]:
        """Release the kept tokens: in front of those of `into`, or as a step of their own if other weights made them.

        Yields that step, or nothing.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return
        if into is not None and self._version == version:
            into.new_token_ids = kept.new_token_ids + into.new_token_ids
        else:
            step = EngineCoreOutputs(outputs=[kept], timestamp=self._kept_at, weight_version=self._version)
            yield add_kept_tokens(step, KeptTokens(is_counted=True))
