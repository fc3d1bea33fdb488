"""The loads: what is asked of every system, and how fast tritonlive has to be at it."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.client import Job

Api = Literal["completions", "chat"]

PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "are", "with", "as", "they", "be", "at", "one")
"""Words that are one token each, so that prompts have about the length they should."""


@dataclass(frozen=True)
class Load:
    """A number of equal requests, a fixed number of them under way at any time.

    Every request asks for exactly `max_tokens` tokens (`ignore_eos`, greedy), so all systems do the same work; its
    prompt is made of random words from a fixed seed, so no two prompts share a cached prefix, and all systems get the
    same ones.
    """

    api: Api
    stream: bool
    concurrency: int
    num_requests: int
    max_tokens: int
    prompt_words: int = 32

    @property
    def name(self) -> str:
        """How the results call it, as in `chat-stream/16`."""
        return f"{self.api}{'-stream' if self.stream else ''}/{self.concurrency}"

    def job(self, url: str, served_name: str, seed: int, num_requests: int | None = None) -> Job:
        """The load as a job for the client; another seed gives other prompts of the same length."""
        words = np.array(WORDS)
        rng = np.random.default_rng(seed)
        prompts = [" ".join(rng.choice(words, self.prompt_words)) for _ in range(num_requests or self.num_requests)]
        bodies = [self._body(served_name, prompt) for prompt in prompts]
        return Job(url, PATHS[self.api], bodies, self.concurrency, self.stream)

    def _body(self, served_name: str, prompt: str) -> dict[str, Any]:
        asked = {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        fixed = {"model": served_name, "max_tokens": self.max_tokens, "temperature": 0, "seed": 0, "ignore_eos": True}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return {**fixed, **asked, **streaming}


@dataclass(frozen=True)
class Plan:
    """The loads of one model, and the ratio of tokens/s, ours over `vllm serve`'s, that each has to reach."""

    loads: tuple[Load, ...]
    targets: dict[str, float]
    """By the load's name; loads without a target are reported only."""


def plan(model: str, *, quick: bool) -> Plan:
    """The loads for a model: for `tiny` those where serving is all the work, else those where the model is.

    `quick` asks for a third of the requests.
    """
    per_slot, max_tokens, concurrencies = (4, 64, (1, 16, 64, 128)) if model == "tiny" else (2, 16, (1, 16, 64))
    apis: tuple[tuple[Api, bool], ...] = (("completions", False), ("completions", True), ("chat", True))
    loads = []
    for api, stream in apis:
        for concurrency in concurrencies:
            num_requests = max(8, per_slot * concurrency)
            num_requests = max(4, concurrency, num_requests // 3) if quick else num_requests
            loads.append(Load(api, stream, concurrency, num_requests, max_tokens))
    targets = {} if model == "tiny" else {f"completions/{concurrency}": 0.95 for concurrency in concurrencies}
    return Plan(tuple(loads), targets)
