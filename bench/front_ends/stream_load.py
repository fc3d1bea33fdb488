"""Streams of random prompts as text, sent by a load generator that others use, too."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from bench.aiperf import Aiperf
from bench.bench_serve import BenchServe
from bench.client import LoadError
from bench.goals import Goal
from bench.measure import Figures

WARM_UP_SEED = 1_000_000
WARM_UP_REQUESTS = 16


@dataclass(frozen=True, kw_only=True)
class StreamLoad:
    """`concurrency` streams at a time. The first ones begin together."""

    kind: Literal["completions", "chat"]
    concurrency: int
    num_requests: int
    max_tokens: int
    prompt_tokens: int = 32
    tool: Literal["vllm-rs", "aiperf"] = "vllm-rs"
    label: str = ""
    """Prefix of the name."""
    goals: tuple[Goal, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.label}{self.kind}-stream/{self.concurrency}"

    def generator(self, num_requests: int) -> BenchServe | Aiperf:
        tool = Aiperf if self.tool == "aiperf" else BenchServe
        return tool(self.kind, self.concurrency, num_requests, self.prompt_tokens, self.max_tokens)


@dataclass(frozen=True)
class Generator:
    """The programs that send the requests, and the tokenizer with which they make prompts."""

    binary: Path
    """`vllm-rs`"""
    tokenizer: Path
    aiperf: Path | None = None

    def program(self, load: StreamLoad) -> Path:
        """Raises LoadError if the load's is not there."""
        program = self.aiperf if load.tool == "aiperf" else self.binary
        if program is None:
            raise LoadError(f"{load.name} needs {load.tool}: name the program")
        return program


@dataclass(frozen=True)
class StreamSide:
    """A front end that gets the streams."""

    name: str
    url: str
    served_name: str
    processes: Callable[[], list[psutil.Process]]
    load: StreamLoad
    generator: Generator

    def warm_up(self) -> None:
        self._run(WARM_UP_SEED, min(WARM_UP_REQUESTS, self.load.num_requests))

    def prepare(self) -> None:
        """No preparation."""

    def run(self, seed: int) -> Figures:
        return self._run(seed, self.load.num_requests)

    def _run(self, seed: int, num_requests: int) -> Figures:
        program = self.generator.program(self.load)
        return self.load.generator(num_requests).run(
            program, self.generator.tokenizer, self.url, self.served_name, seed
        )
