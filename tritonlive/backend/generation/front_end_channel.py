"""A front end's return path, and the steps that wait to be sent on it."""

import asyncio
from collections import deque
from collections.abc import Sequence

from tritonlive.backend.responses import Sender
from tritonlive.backend.vllm_seam.messages import EngineCoreOutputs

from .front_end_generation import FrontEndGeneration


class FrontEndChannel:
    """The response sender of a front end's open request, its generations, and its unsent steps.

    The engine's loop fills `waiting`, the writer's thread drains it. It is a deque, because append and popleft of a
    deque are atomic.
    """

    def __init__(self, name: bytes, sender: Sender) -> None:
        self.name = name
        self.sender = sender
        self.generations: dict[str, FrontEndGeneration] = {}  # by request id
        self.waiting: deque[tuple[EngineCoreOutputs, list[Sender]]] = deque()
        """Each step's outputs, and the requests to close after it was sent."""
        self.is_queued = False
        """Whether a job of the writer is about to drain `waiting`."""
        self.held: EngineCoreOutputs | None = None
        """A step that carries only gauges, until its timer sends it."""
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

    def add(self, step: EngineCoreOutputs, finished: Sequence[Sender] = ()) -> None:
        """Queue a step, and the requests to close after it."""
        self.waiting.append((step, list(finished)))
