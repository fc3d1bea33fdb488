"""A front end's return path, and the steps that wait to be sent on it."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonlive.backend.responses import Sender
from tritonlive.backend.vllm_seam.messages import EngineCoreOutput, EngineCoreOutputs, RelayedOutputs, add_kept_tokens
from tritonlive.wire.kept_tokens import KeptStep, KeptTokens

from .front_end_generation import FrontEndGeneration


@dataclass
class ChannelPart:
    """One channel's part of a step."""

    outputs: list[EngineCoreOutput] = field(default_factory=list)
    finished: list[Sender] = field(default_factory=list)
    """Requests to close after the step was sent."""
    released: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Outputs that bring kept tokens, see KeptTokens."""


class FrontEndChannel:
    """The response sender of a front end's open request, its generations, and its unsent steps.

    The engine's loop fills `waiting`, the writer's thread drains it. It is a deque, because append and popleft of a
    deque are atomic.
    """

    def __init__(self, name: bytes, sender: Sender) -> None:
        self.name = name
        self.sender = sender
        """Of the newest request that opened the channel."""
        self.generations: dict[str, FrontEndGeneration] = {}  # by request id
        self.waiting: deque[tuple[EngineCoreOutputs, list[Sender]]] = deque()
        """Each step's outputs, and the requests to close after it was sent."""
        self.is_queued = False
        """Whether a job of the writer is about to drain `waiting`."""
        self.held: EngineCoreOutputs | None = None
        """A step that carries only gauges or counts, until its timer sends it."""
        self.kept_steps: list[KeptStep] = []
        """Steps whose tokens, or some of them, were kept, and which the front end has not counted yet."""
        self.seen = asyncio.Event()
        """Set while the front end knows which adapters serve."""

    def drain(self) -> tuple[list[EngineCoreOutputs], list[Sender]]:
        """Take all waiting steps, and the requests to close after them. Called on the writer's thread."""
        self.is_queued = False
        steps: list[EngineCoreOutputs] = []
        finished: list[Sender] = []
        while self.waiting:
            step, senders = self.waiting.popleft()
            steps.append(step)
            finished += senders
        return steps, finished

    def count_kept(self, timestamp: float, num_tokens: int, latency: float) -> None:
        """Count an output that is kept: the step's time, its tokens, seconds since its generation's output before."""
        if not self.kept_steps or self.kept_steps[-1].timestamp != timestamp:
            self.kept_steps.append(KeptStep(timestamp, 0, {}))
        step = self.kept_steps[-1]
        step.num_tokens += num_tokens
        step.latencies[latency] = step.latencies.get(latency, 0) + 1

    def add(
        self,
        step: EngineCoreOutputs,
        finished: Sequence[Sender] = (),
        released: dict[str, tuple[float, int]] | None = None,
    ) -> None:
        """Queue a step with the counts of kept tokens so far, and the requests to close after it.

        released: the step's outputs that bring kept tokens (KeptTokens.released).
        """
        steps, self.kept_steps = self.kept_steps, []
        if isinstance(step, RelayedOutputs) and step.kept is not None:
            step.kept.steps = steps
        elif steps or released:
            step = add_kept_tokens(step, KeptTokens(steps, released or {}))
        self.waiting.append((step, list(finished)))
