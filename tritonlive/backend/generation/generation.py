"""One generation of a front end, and the tokens of it that can wait.

A front end that answers a request whole does nothing with a token before the last one has come. So the plain outputs of
such a generation, those that bring tokens and nothing else, are kept here and travel with the next one that is not
plain, as a rule the last. The first is never plain: it says when the first token came.
"""

from collections.abc import Iterator
from operator import attrgetter, is_

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from tritonlive.backend.responses import Sender

# What else an output can bring; whatever vLLM adds to it makes it not plain.
EXTRAS = tuple(name for name in EngineCoreOutput.__struct_fields__ if name not in ("request_id", "new_token_ids"))
read_extras = attrgetter(*EXTRAS)
NO_EXTRAS = read_extras(EngineCoreOutput("", []))


class Batch:
    """The generations that came as one Triton request."""

    def __init__(self, sender: Sender, size: int) -> None:
        self._sender: Sender | None = sender
        self._num_running = size

    def end_one(self) -> list[Sender]:
        """One of them has ended or was refused. Returns the sender if it is to be closed now: after the last."""
        self._num_running -= 1
        return self.end() if self._num_running == 0 else []

    def end(self) -> list[Sender]:
        """All of them have. Returns the sender unless it has been returned before."""
        ended, self._sender = self._sender, None
        return [] if ended is None else [ended]


class Generation:
    """One of `batch`."""

    def __init__(self, batch: Batch, params: SamplingParams) -> None:
        self.batch = batch
        # With stop strings the front end has to look at every token: it finds them, and aborts.
        self._is_whole = params.output_kind is RequestOutputKind.FINAL_ONLY and not params.stop
        self._has_begun = False
        self._kept: EngineCoreOutput | None = None
        self._version: str | None = None  # of the weights that made what is kept

    def keeps(self, output: EngineCoreOutput, version: str | None) -> bool:
        """Whether `output` of weights `version` was kept. If not it is to be sent, with what `flush` gives."""
        if not self._is_whole:
            return False
        if not self._has_begun:
            self._has_begun = True
            return False
        if not all(map(is_, read_extras(output), NO_EXTRAS)):
            return False
        if self._kept is None:
            self._kept, self._version = output, version
            return True
        if self._version == version:
            self._kept.new_token_ids += output.new_token_ids
            return True
        return False

    def flush(self, into: EngineCoreOutput | None = None, version: str | None = None) -> Iterator[EngineCoreOutputs]:
        """What is kept: put in front of the tokens of `into`, or a step of its own where other weights made it."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        if into is not None and self._version == version:
            into.new_token_ids = kept.new_token_ids + into.new_token_ids
        else:
            yield EngineCoreOutputs(outputs=[kept], weight_version=self._version)
