"""The loads that are HTTP requests, alike for every server."""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import psutil

from bench.client import Job, run_job
from bench.goals import Goal
from bench.helpers import Offline
from bench.measure import Figures, Side
from bench.systems import Server, Systems

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "are", "with", "as", "they", "be", "at", "one")
"""Words that are one token each, so that prompts have about the length they should."""
WARM_UP_SEED = 1_000_000
"""Prompts of a warm-up are not those of a measurement."""
WARM_UP_REQUESTS = 16


@dataclass(frozen=True, kw_only=True)
class HttpLoad(ABC):
    """A number of equal requests, a fixed number of them under way at any time; `vllm serve` is the other side.

    Every request asks for exactly `max_tokens` tokens (`ignore_eos`, greedy), so all systems do the same work; its
    prompt is made of random words from a fixed seed, other ones for each load, so no two prompts share a cached prefix,
    and all systems get the same ones.
    """

    path: ClassVar[str] = "/v1/completions"

    goals: tuple[Goal, ...] = ()
    concurrency: int
    num_requests: int
    max_tokens: int
    prompt_words: int = 32
    stream: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """How the results call it, as in `chat-stream/16`."""

    @abstractmethod
    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        """The part of a request's body that is this load's own."""

    def arrivals_s(self, rng: np.random.Generator, num_requests: int) -> list[float] | None:
        """When each request is sent; None: whenever one of the others has its answer."""
        return None

    def job(self, url: str, served_name: str, seed: int, num_requests: int | None = None) -> Job:
        """The load as a job for the client; another seed gives other prompts of the same length."""
        num_requests = num_requests or self.num_requests
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed])
        bodies = [self._body(served_name, self.asked(rng)) for _ in range(num_requests)]
        return Job(url, self.path, bodies, self.concurrency, self.stream, self.arrivals_s(rng, num_requests))

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        ours, theirs = (
            ServerSide(label, systems.server(label), self, systems.settings.served_name) for label in systems.labels
        )
        return ours, theirs

    def _body(self, served_name: str, asked: dict[str, Any]) -> dict[str, Any]:
        fixed = {"model": served_name, "max_tokens": self.max_tokens, "temperature": 0, "seed": 0, "ignore_eos": True}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return {**fixed, **streaming, **asked}

    def _text(self, rng: np.random.Generator) -> str:
        return " ".join(rng.choice(np.array(WORDS), self.prompt_words))


@dataclass(frozen=True, kw_only=True)
class Completions(HttpLoad):
    """Plain completions."""

    kind: str = "completions"

    @property
    def name(self) -> str:
        return f"{self.kind}{'-stream' if self.stream else ''}/{self.concurrency}"

    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"prompt": self._text(rng)}


@dataclass(frozen=True, kw_only=True)
class Chat(HttpLoad):
    """Chats of one message."""

    path = "/v1/chat/completions"
    kind: str = "chat"

    @property
    def name(self) -> str:
        return f"{self.kind}{'-stream' if self.stream else ''}/{self.concurrency}"

    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self._text(rng)}]}


@dataclass(frozen=True, kw_only=True)
class ChatBatch(Chat):
    """Chats sent at once, one request each; the other side is one call of vLLM's offline `LLM.chat`."""

    kind: str = "chats"

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        label, served_name = systems.labels[0], systems.settings.served_name
        return ServerSide(label, systems.server(label), self, served_name), OfflineSide(systems.offline, self)


@dataclass(frozen=True, kw_only=True)
class Rollouts(HttpLoad):
    """What a trainer asks for: several sampled completions of each prompt, with token ids and logprobs."""

    samples: int = 8

    @property
    def name(self) -> str:
        return f"rollouts/{self.samples}"

    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        sampling = {"n": self.samples, "temperature": 1.0, "logprobs": 1, "return_token_ids": True}
        return {"prompt": self._text(rng), **sampling}


@dataclass(frozen=True, kw_only=True)
class Teacher(HttpLoad):
    """What a distillation trainer asks for: the likeliest tokens at every position of several sequences, in one call.

    The client reads the whole JSON answer, as a trainer must; the time counts.
    """

    sequences: int = 8
    top: int = 100

    @property
    def name(self) -> str:
        return f"teacher/top{self.top}"

    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"prompt": [self._text(rng) for _ in range(self.sequences)], "prompt_logprobs": self.top}


@dataclass(frozen=True, kw_only=True)
class Poisson(Completions):
    """Streams that begin at random times, `rate` per second on average, whatever is still under way."""

    rate: int

    @property
    def name(self) -> str:
        return f"poisson/{self.rate}"

    def arrivals_s(self, rng: np.random.Generator, num_requests: int) -> list[float]:
        return rng.exponential(1 / self.rate, num_requests).cumsum().tolist()


@dataclass(frozen=True)
class ServerSide:
    """A server that gets the requests."""

    name: str
    server: Server
    load: HttpLoad
    served_name: str

    def processes(self) -> list[psutil.Process]:
        return self.server.processes()

    def warm_up(self) -> None:
        self._send(WARM_UP_SEED, min(self.load.concurrency, self.load.num_requests, WARM_UP_REQUESTS))

    def prepare(self) -> None:
        """Nothing."""

    def run(self, seed: int) -> Figures:
        return self._send(seed)

    def _send(self, seed: int, num_requests: int | None = None) -> Figures:
        return run_job(self.load.job(self.server.url, self.served_name, seed, num_requests)).figures()


@dataclass(frozen=True)
class OfflineSide:
    """vLLM's offline `LLM.chat`, which gets the same conversations in one call."""

    offline: Offline
    load: Chat
    name: str = "LLM.chat"

    def processes(self) -> list[psutil.Process]:
        return self.offline.processes()

    def warm_up(self) -> None:
        self._chat(WARM_UP_SEED, WARM_UP_REQUESTS)

    def prepare(self) -> None:
        """Nothing."""

    def run(self, seed: int) -> Figures:
        return self._chat(seed)

    def _chat(self, seed: int, num_requests: int | None = None) -> Figures:
        bodies = self.load.job("", "", seed, num_requests).bodies
        return self.offline.chat([body["messages"] for body in bodies], self.load.max_tokens)
