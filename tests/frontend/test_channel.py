"""openai_frontend/channel.py: what a front end does with announcements of adapters."""

import asyncio
import json
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreOutputs

from openai_frontend.channel import Callbacks, Channel
from openai_frontend.connection import Contents


class Connection:
    """Records what was sent; `answer` is the channel's."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent: list[list[str]] = []
        self.behind: list[str | None] = []
        self.answer: Any = None

    def send(self, request_id: str, tensors: dict[str, Any], on_answer: Any, *, behind: str | None = None) -> None:
        self.behind.append(behind)
        self.sent.append(list(tensors))
        if len(tensors) == 1:
            self.answer = on_answer
            on_answer(told(1, outputs=[]), None)

    def forget(self, request_id: str) -> None:
        """Nothing waits here."""


def told(serial: int, outputs: list[Any] | None = None, **versions: str) -> Contents:
    text = json.dumps({"serial": str(serial), "adapters": versions}).encode()
    tensors = {"engine_adapters": len(text).to_bytes(4, "little") + text}
    return tensors if outputs is None else tensors | {"engine_outputs": msgspec.msgpack.encode(outputs)}


async def test_announcements_are_taken_and_acknowledged_and_outputs_go_on() -> None:
    announced: list[str] = []
    steps: list[EngineCoreOutputs] = []

    def take(announcement: str) -> str:
        announced.append(announcement)
        return json.loads(announcement)["serial"]

    connection: Any = Connection()
    await Channel.open(connection, Callbacks(steps.append, lambda request_id, error: None, take), 1)
    acknowledgement = ["engine_channel", "engine_seen"]
    assert connection.sent == [["engine_channel"], acknowledgement], "the channel is open, and tells what serves"
    connection.answer(told(2, mine="v1"), None)
    assert connection.sent[2:] == [acknowledgement]
    assert [json.loads(text)["adapters"] for text in announced] == [{}, {"mine": "v1"}]
    connection.answer({"engine_outputs": msgspec.msgpack.encode([EngineCoreOutputs(weight_version="w2")])}, None)
    assert [step.weight_version for step in steps] == ["w2"]
    assert len(connection.sent) == 3


async def test_an_abort_goes_behind_its_generation() -> None:
    connection: Any = Connection()
    nothing: Any = lambda *_: ""  # noqa: E731
    channel = await Channel.open(connection, Callbacks(nothing, nothing, nothing), 1)
    channel.generate("g1", b"")
    channel.generate("g2", b"")
    channel.abort(["g1", "g2"])
    assert connection.sent[-2:] == [["engine_channel", "engine_abort"]] * 2
    assert connection.behind[-2:] == ["g1", "g2"]
