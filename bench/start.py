"""The load that measures the time from a system's launch to its first token."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import httpx
import psutil

from bench.client import REQUEST_TIMEOUT_S, LoadError
from bench.goals import Goal
from bench.measure import Figures, Side
from bench.server import Server
from bench.systems import Systems


@dataclass(frozen=True)
class StartFirstToken:
    """Time from launching the processes to a token through the OpenAI routes, with nothing else running.

    Both systems have run before, so caches are filled. A start takes more than a minute, so two of each suffice when
    the number of repeats is limited by time.
    """

    name: str = "start/first-token"
    least_repeats: int = 2
    goals: tuple[Goal, ...] = (Goal("seconds", "lower", 1.15),)

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        for label in systems.labels:
            systems.server(label)
        systems.stop()
        served_name = systems.settings.served_name
        ours, theirs = (StartSide(label, partial(systems.start, label), served_name) for label in systems.labels)
        return ours, theirs


@dataclass(frozen=True)
class StartSide:
    """A system that is started for each run and stopped after it."""

    name: str
    start: Callable[[], AbstractContextManager[Server]]
    served_name: str

    def processes(self) -> list[psutil.Process]:
        """No processes, because none outlives a run."""
        return []

    def warm_up(self) -> None:
        """No warm-up: the system has run before."""

    def prepare(self) -> None:
        """No preparation."""

    def run(self, seed: int) -> Figures:
        began = time.perf_counter()
        with self.start() as server:
            complete_one_token(server.url, self.served_name)
            return {"seconds": time.perf_counter() - began}


def complete_one_token(url: str, served_name: str) -> None:
    """Request a completion of one token. Raises LoadError if it fails."""
    body = {"model": served_name, "prompt": "Hello", "max_tokens": 1}
    try:
        httpx.post(f"{url}/v1/completions", json=body, timeout=REQUEST_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        raise LoadError(f"no first token: {error}") from error
