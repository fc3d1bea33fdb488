"""The mixed load: requests of every kind, sent by clients that never rest."""

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

TIMEOUT_S = 120.0
ADAPTER = "soak-adapter"
PAUSE_S = 0.5
"""A client waits so long after a failure, as real ones do."""
SLOW_READ_S = 0.05
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Answer:
    """One request's end. `outcome` is `answered`, a status, `error event`, `cut off`, or a client's exception."""

    kind: str
    began_s: float
    seconds: float
    outcome: str


def body_of(kind: str, rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a request of that kind."""
    text = " ".join(
        rng.choice(("the", "of", "and", "to", "in", "is", "was", "for")) for _ in range(rng.randint(4, 200))
    )
    prompt = {"model": model, "prompt": text, "max_tokens": rng.randint(8, 64)}
    chat = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": rng.randint(8, 64)}
    match kind:
        case "whole":
            return COMPLETION, prompt
        case "stream" | "abort":
            return COMPLETION, prompt | {"stream": True, "max_tokens": 200, "ignore_eos": True}
        case "chat stream":
            return CHAT, chat | {"stream": True}
        case "token ids":
            ids = [rng.randint(5, 5000) for _ in range(rng.randint(8, 300))]
            return COMPLETION, prompt | {"prompt": ids, "return_token_ids": True, "n": 2}
        case "tools":
            return CHAT, chat | {"tools": [TOOL], "tool_choice": "required"}
        case "grammar":
            grammar = rng.choice(({"json": SCHEMA}, {"regex": r"[a-z]{3,12}"}, {"choice": ["yes", "no"]}))
            return CHAT, chat | {"structured_outputs": grammar}
        case "logprobs":
            return COMPLETION, prompt | {"logprobs": 5, "prompt_logprobs": 5}
        case "large":
            words = " ".join([text] * 4)[:4000]
            return COMPLETION, prompt | {"prompt": words, "n": 8, "logprobs": 10, "prompt_logprobs": 10}
        case "adapter":
            return COMPLETION, prompt | {"model": ADAPTER}
        case "slow reader":
            return COMPLETION, prompt | {"stream": True, "max_tokens": 300, "ignore_eos": True, "logprobs": 5}
    raise ValueError(f"no kind {kind!r}")


KINDS = (
    *("whole", "stream", "abort", "chat stream", "token ids", "tools", "grammar", "logprobs", "large"),
    *("adapter", "slow reader"),
)


class Load:
    """Clients of a front end; `answers` grows while they run."""

    def __init__(self, url: str, model: str, seed: int, began: float, has_adapter: threading.Event) -> None:
        """began: the monotonic clock at the run's begin. has_adapter: whether requests may ask for the adapter."""
        self._url = url
        self._model = model
        self._seed = seed
        self._began = began
        self._has_adapter = has_adapter
        self._stop = threading.Event()
        self.answers: list[Answer] = []

    def stop(self) -> None:
        """Let each client finish its request, and `run` return. May be called from another thread."""
        self._stop.set()

    async def run(self, clients: int) -> None:
        """Send requests, `clients` at a time, until `stop`."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S, limits=limits) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(clients)))

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")  # noqa: S311 - no secret
        while not self._stop.is_set():
            kind = rng.choice(KINDS)
            if kind == "adapter" and not self._has_adapter.is_set():
                kind = "whole"
            path, body = body_of(kind, rng, self._model)
            began = time.monotonic()
            try:
                outcome = await self._send(http, kind, path, body)
            except Exception as error:  # whatever it is, it is an outcome, and the client goes on
                outcome = type(error).__name__
            self.answers.append(Answer(kind, began - self._began, time.monotonic() - began, outcome))
            if outcome != "answered":
                await asyncio.sleep(PAUSE_S)

    async def _send(self, http: httpx.AsyncClient, kind: str, path: str, body: dict[str, Any]) -> str:
        if not body.get("stream"):
            answer = await http.post(path, json=body)
            return "answered" if answer.status_code == httpx.codes.OK else str(answer.status_code)
        async with http.stream("POST", path, json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                await answer.aread()
                return str(answer.status_code)
            return await _read(answer.aiter_lines(), kind)


async def _read(lines: AsyncIterator[str], kind: str) -> str:
    """Read a stream as its kind of client does."""
    count = 0
    async for line in lines:
        if not line.startswith("data: "):
            continue
        count += 1
        if line == "data: [DONE]":
            return "answered"
        if '"error"' in line[:40] and "error" in json.loads(line.removeprefix("data: ")):
            return "error event"
        if kind == "abort" and count == 3:
            return "answered"
        if kind == "slow reader":
            await asyncio.sleep(SLOW_READ_S)
    return "cut off"
