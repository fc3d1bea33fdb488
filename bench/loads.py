"""Loads of HTTP requests, which are the same for every server."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import psutil

from bench.client import MODULE, Client, Job, run_job
from bench.helpers import Offline
from bench.measure import Figures, Side
from bench.server import Server
from bench.server_load import WARM_UP_SEED, ServerLoad
from bench.systems import Systems

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "are", "with", "as", "they", "be", "at", "one")
"""Words of one token each, so that prompts have about the intended length."""
WARM_UP_REQUESTS = 16


@dataclass(frozen=True, kw_only=True)
class HttpLoad(ServerLoad):
    """Requests of equal size, with a fixed number of them running at any time.

    Every request asks for exactly `max_tokens` tokens (`ignore_eos`, greedy), so all systems do the same work. Its
    prompt consists of random words.
    """

    module = MODULE
    path: ClassVar[str] = "/v1/completions"

    concurrency: int
    num_requests: int
    max_tokens: int
    prompt_words: int = 32
    stream: bool = False

    @abstractmethod
    def asked(self, rng: np.random.Generator) -> dict[str, Any]:
        """Fields of a request's body that are particular to this load."""

    def arrivals_s(self, rng: np.random.Generator, num_requests: int) -> list[float] | None:
        """Seconds at which each request is sent; None: a request is sent when another has its answer."""
        return None

    def job(self, url: str, served_name: str, seed: int, num_requests: int | None = None) -> Job:
        """The load as a job for the client. Another seed gives other prompts of the same length."""
        num_requests = num_requests or self.num_requests
        rng = self.rng(seed)
        bodies = [self._body(served_name, self.asked(rng)) for _ in range(num_requests)]
        return Job(url, self.path, bodies, self.concurrency, self.stream, self.arrivals_s(rng, num_requests))

    def send(self, server: Server, served_name: str, seed: int, client: Client | None = None) -> Figures:
        return run_job(self.job(server.url, served_name, seed), client).figures()

    def warm_up(self, server: Server, served_name: str) -> None:
        num_requests = min(self.concurrency, self.num_requests, WARM_UP_REQUESTS)
        run_job(self.job(server.url, served_name, WARM_UP_SEED, num_requests))

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
    """Chats sent at once, one request each. The other side is one call of vLLM's offline `LLM.chat`."""

    kind: str = "chats"

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        return self.side(systems, systems.labels[0]), OfflineSide(systems.offline, self)


@dataclass(frozen=True, kw_only=True)
class Teacher(HttpLoad):
    """A distillation trainer's request: the most likely tokens at every position of several sequences, in one call.

    The client parses the whole JSON answer, as a trainer must. The time includes this.
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
    """Streams that begin at random times, `rate` per second on average, also while others run."""

    rate: int

    @property
    def name(self) -> str:
        return f"poisson/{self.rate}"

    def arrivals_s(self, rng: np.random.Generator, num_requests: int) -> list[float]:
        return rng.exponential(1 / self.rate, num_requests).cumsum().tolist()


@dataclass(frozen=True)
class OfflineSide:
    """vLLM's offline `LLM.chat`: all conversations in one call."""

    offline: Offline
    load: Chat
    name: str = "LLM.chat"

    def processes(self) -> list[psutil.Process]:
        return self.offline.processes()

    def warm_up(self) -> None:
        self._chat(WARM_UP_SEED, WARM_UP_REQUESTS)

    def prepare(self) -> None:
        """No preparation."""

    def run(self, seed: int) -> Figures:
        return self._chat(seed)

    def _chat(self, seed: int, num_requests: int | None = None) -> Figures:
        bodies = self.load.job("", "", seed, num_requests).bodies
        return self.offline.chat([body["messages"] for body in bodies], self.load.max_tokens)
