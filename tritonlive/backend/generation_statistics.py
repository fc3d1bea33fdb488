"""How long generations take and how many tokens they have, for those of front ends and native ones alike.

Every generation passes the engine core's client on its way in, and its outputs on their way back. Times are those of
the engine's stamps. Waiting times count from the arrival in this process, since a front end's clock may be another
machine's. Metric names, labels and buckets are those of Triton's vllm_backend, and of vLLM where that has none.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .histograms import Histogram
from .vllm_seam.core import parent_request_id
from .vllm_seam.messages import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)

GENERATION_DESCRIPTIONS = {
    "time_to_first_token_seconds": "Time from a generation's arrival in the model to its first token.",
    "time_per_output_token_seconds": "Time between a generation's outputs, usually one token each.",
    "e2e_request_latency_seconds": "Time from a generation's arrival in the model to its end.",
    "request_queue_time_seconds": "Time that a generation waited in the engine's queue.",
    "request_inference_time_seconds": "Time from a generation's start in the engine to its last token.",
    "request_prefill_time_seconds": "Time from a generation's start in the engine to its first token.",
    "request_decode_time_seconds": "Time from a generation's first token to its last.",
    "request_prompt_tokens": "Prompt tokens of a generation.",
    "request_generation_tokens": "Tokens of a generation.",
    "request_params_n": "Generations of one request: the parameter n.",
}
"""The histograms of generations that the engine has ended. An aborted one counts in the first two only."""

BUCKETS = {
    "time_to_first_token_seconds": "time_to_first_token",
    "time_per_output_token_seconds": "inter_token_latency",
    "request_prompt_tokens": "request_tokens",
    "request_generation_tokens": "request_tokens",
    "request_params_n": "request_params_n",
}
"""vLLM's families of buckets; all other histograms have those of "request_latency"."""


@dataclass
class Request:
    """A request's generations."""

    num_running: int = 0
    num_begun: int = 0


@dataclass
class Generation:
    """A running generation. Stamps are seconds of the monotonic clock."""

    arrived_at: float
    num_prompt_tokens: int
    parent: str
    """Names its request, which has n generations."""
    queued_at: float | None = None
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    num_tokens: int = 0


@dataclass
class GenerationStatistics:
    """Observes what goes into the engine core and what comes back. Runs on the engine's loop."""

    clock: Callable[[], float] = time.monotonic
    histograms: dict[str, Histogram] = field(default_factory=dict)
    num_ended: dict[str, int] = field(default_factory=lambda: {str(reason): 0 for reason in FinishReason})
    """Ended generations by reason."""
    _running: dict[str, Generation] = field(default_factory=dict)
    _requests: dict[str, Request] = field(default_factory=dict)

    def begin(self, buckets: Callable[[str], Sequence[float]]) -> None:
        """Make the histograms, unless an earlier engine had them. buckets: upper bounds of a vLLM family."""
        if not self.histograms:
            names = GENERATION_DESCRIPTIONS
            self.histograms.update({name: Histogram(buckets(BUCKETS.get(name, "request_latency"))) for name in names})

    def added(self, request: EngineCoreRequest) -> None:
        """A generation goes to the engine core."""
        parent = parent_request_id(request)
        self._running[request.request_id] = Generation(self.clock(), len(request.prompt_token_ids or ()), parent)
        siblings = self._requests.setdefault(parent, Request())
        siblings.num_running += 1
        siblings.num_begun += 1

    def aborted(self, request_ids: Sequence[str]) -> None:
        """Generations are aborted: the engine says nothing more of them."""
        for request_id in request_ids:
            if (generation := self._running.pop(request_id, None)) is not None:
                self._end(generation, FinishReason.ABORT)

    def observe(self, outputs: EngineCoreOutputs) -> EngineCoreOutputs:
        """Count all outputs of a step; returns the step unchanged."""
        now: float | None = None
        for output in outputs.outputs:
            generation = self._running.get(output.request_id)
            if generation is None:
                continue
            if output.events is not None:
                note_events(generation, output)
            if output.new_token_ids:
                if generation.first_token_at is None:
                    now = self.clock() if now is None else now
                    generation.first_token_at = outputs.timestamp
                    self.histograms["time_to_first_token_seconds"].observe(now - generation.arrived_at)
                else:
                    latency = outputs.timestamp - generation.last_token_at
                    self.histograms["time_per_output_token_seconds"].observe(latency)
                generation.last_token_at = outputs.timestamp
                generation.num_tokens += len(output.new_token_ids)
            if output.finish_reason is not None:
                del self._running[output.request_id]
                self._observe_ended(generation, outputs.timestamp)
                self._end(generation, output.finish_reason)
        return outputs

    def engine_died(self, _reason: str) -> None:
        """All running generations have failed."""
        running, self._running = self._running, {}
        for generation in running.values():
            self._end(generation, FinishReason.ERROR)

    def _observe_ended(self, generation: Generation, ended_at: float) -> None:
        first_at, last_at = generation.first_token_at, generation.last_token_at
        begun_at = generation.scheduled_at
        if first_at is None:
            # A generation that ends in the queue has waited until then, and has no other times.
            begun_at = ended_at if begun_at is None else begun_at
            first_at = last_at = ended_at
        values: dict[str, float] = {
            "e2e_request_latency_seconds": self.clock() - generation.arrived_at,
            "request_decode_time_seconds": last_at - first_at,
            "request_prompt_tokens": generation.num_prompt_tokens,
            "request_generation_tokens": generation.num_tokens,
        }
        if begun_at is not None:  # with --disable-log-stats the engine does not say when it begins
            queued_at = begun_at if generation.queued_at is None else generation.queued_at
            values["request_queue_time_seconds"] = begun_at - queued_at
            values["request_inference_time_seconds"] = last_at - begun_at
            values["request_prefill_time_seconds"] = first_at - begun_at
        for name, value in values.items():
            self.histograms[name].observe(value)

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        self.num_ended[str(reason)] += 1
        request = self._requests[generation.parent]
        request.num_running -= 1
        if not request.num_running:
            del self._requests[generation.parent]
            self.histograms["request_params_n"].observe(request.num_begun)


def note_events(generation: Generation, output: EngineCoreOutput) -> None:
    """Note when the engine has queued a generation and begun it; later beginnings follow a preemption."""
    for event in output.events or ():
        if event.type is EngineCoreEventType.QUEUED:
            generation.queued_at = event.timestamp
        elif event.type is EngineCoreEventType.SCHEDULED and generation.scheduled_at is None:
            generation.scheduled_at = event.timestamp
