"""Runs many sequences in this process, and shortens one that fails."""

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .contents import read_contents, write_tiny_checkpoint
from .coverage import Coverage
from .fleet_run import FleetRun, World
from .found import FOUND
from .ranks import Ranks, shorten_polls
from .replicas import Disk
from .steps import WORLD_SIZES, Step, draw_steps

# A failure that depends on time may not come back at once.
RETRIES = 2


@dataclass(frozen=True)
class Failure:
    """A sequence that served something else than its label said."""

    index: int | None
    steps: list[Step]
    message: str
    log: list[str]

    def report(self, seed: int) -> str:
        lines = [f"MISLABELLED: seed {seed}, sequence {self.index}: {self.message}"]
        lines += [f"  {line}" for line in self.log]
        lines += ["  replay: python -m tests.property --replay '" + to_json(self.steps) + "'"]
        return "\n".join(lines)


def to_json(steps: list[Step]) -> str:
    return json.dumps([step.as_json() for step in steps])


def from_json(text: str) -> list[Step]:
    return [Step(kind, options) for kind, options in json.loads(text)]


def build_world(folder: Path) -> World:
    """Models, contents and a loop; takes some seconds, vLLM's imports included."""
    write_tiny_checkpoint(folder)
    contents = read_contents(folder)
    reference = Ranks(folder)
    for content in contents:
        reference.digest_of(content)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="model-loop", daemon=True).start()
    list(shorten_polls([module for name, module in sys.modules.items() if name.startswith("sync.")]))
    ranks = {name: reference.build(world_size) for name, world_size in WORLD_SIZES.items()}
    return World(reference, ranks, contents, Disk(folder, contents[0]), loop)


class Runner:
    """`say` gets a line for each thing worth knowing."""

    def __init__(self, world: World, say: Callable[[str], None]) -> None:
        self.world = world
        self._say = say

    def run(self, seed: int, count: int, first: int = 0) -> list[Failure]:
        """The sequences first … first + count - 1; stops at the first failure and shortens it."""
        began = time.monotonic()
        for index in range(first, first + count):
            steps = draw_steps(seed, index)
            failure = self.try_steps(steps, index)
            if failure is not None:
                self._say(failure.report(seed))
                return [self.shorten(failure)]
            if index % 25 == 24:
                self._say(f"{index + 1 - first} sequences, {time.monotonic() - began:.0f} s")
        return []

    def run_found(self) -> list[Failure]:
        """The sequences that have shown faults (found.py); returns those that fail."""
        failures = [(name, self.try_steps(steps)) for name, steps in FOUND.items()]
        for name, failure in failures:
            self._say(f"{'ok' if failure is None else 'FAILED'}: {name}")
        return [failure for _, failure in failures if failure is not None]

    def try_steps(self, steps: list[Step], index: int | None = None) -> Failure | None:
        run = FleetRun(self.world)
        self.world.coverage.sequences += 1
        try:
            run.run(steps)
        except Exception as error:  # every error of a sequence is shown with the sequence
            return Failure(index, steps, f"{type(error).__name__}: {error}", run.log)
        return None

    def shorten(self, failure: Failure) -> Failure:
        """Without every step that it does not need."""
        coverage, self.world.coverage = self.world.coverage, Coverage()
        shortest = failure
        position = len(failure.steps) - 1
        while position >= 0:
            fewer = shortest.steps[:position] + shortest.steps[position + 1 :]
            found = next((f for _ in range(RETRIES) if (f := self.try_steps(fewer, failure.index))), None)
            shortest = found or shortest
            position -= 1
        self.world.coverage = coverage
        return shortest


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="tritonlive-property-")
