"""ReplicaChannel: sending of generations, and announcements of adapters."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas import replica_channel
from openai_frontend.replicas.connection import Contents
from openai_frontend.replicas.replica_channel import ChannelCallbacks, ReplicaChannel
from tritonlive.wire.limits import MAX_BATCH

decode_steps = msgspec.msgpack.Decoder(list[EngineCoreOutputs]).decode


class Connection:
    """Records what was sent; `answer` is the channel's, `answer_last` the newest request's."""

    def __init__(self) -> None:
        self.credentials: dict[str, str] = {}
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent: list[dict[str, Any]] = []
        self.waiting: dict[str, Any] = {}
        self.answer: Any = None
        self.answer_last: Any = None
        self.openings: list[Any] = []

    def send(self, request_id: str, tensors: dict[str, Any], on_answer: Any) -> None:
        if self.closed.done():
            raise EngineUnavailable(self.closed.result())
        self.sent.append(tensors)
        self.waiting[request_id] = self.answer_last = on_answer
        if tensors.keys() <= {"engine_channel", "api_key"}:
            self.openings.append(on_answer)
            if len(self.openings) == 1:
                self.answer = on_answer
                on_answer(told(1, outputs=[]), None)

    def forget(self, request_id: str) -> None:
        self.waiting.pop(request_id, None)


def string(text: str) -> bytes:
    """Triton's encoding of it."""
    return len(text.encode()).to_bytes(4, "little") + text.encode()


def told(serial: int, outputs: list[Any] | None = None, **versions: str) -> Contents:
    tensors = {"engine_adapters": string(json.dumps({"serial": str(serial), "adapters": versions}))}
    return tensors if outputs is None else tensors | {"engine_outputs": msgspec.msgpack.encode(outputs)}


async def test_announcements_are_taken_and_acknowledged_and_outputs_go_on() -> None:
    announced: list[str] = []
    steps: list[Any] = []

    def take(announcement: str) -> str:
        announced.append(announcement)
        return json.loads(announcement)["serial"]

    connection: Any = Connection()
    await ReplicaChannel.open(
        connection, ChannelCallbacks(steps.append, lambda request_id, error: None, take), decode_steps, 1
    )
    acknowledgement = ["engine_channel", "engine_seen"]
    sent = connection.sent
    assert [list(tensors) for tensors in sent] == [["engine_channel"], acknowledgement], (
        "the channel is open, and tells what serves"
    )
    connection.answer(told(2, mine="v1"), None)
    assert [list(tensors) for tensors in sent[2:]] == [acknowledgement]
    assert [json.loads(text)["adapters"] for text in announced] == [{}, {"mine": "v1"}]
    connection.answer({"engine_outputs": msgspec.msgpack.encode([EngineCoreOutputs(weight_version="w2")])}, None)
    assert [step.weight_version for step in steps] == ["w2"]
    assert len(sent) == 3


async def test_the_key_is_shown_when_the_channel_opens_and_not_again() -> None:
    connection: Any = Connection()
    connection.credentials = {"api_key": "the key"}
    await ReplicaChannel.open(connection, ChannelCallbacks(print, print, lambda _announcement: "1"), decode_steps, 1)
    assert [tensors.get("api_key") for tensors in connection.sent] == ["the key", None]


class Setting:
    """A channel that is open."""

    channel: ReplicaChannel

    def __init__(self) -> None:
        self.connection: Any = Connection()
        self.errors: dict[str, str] = {}

    def refuse(self, request_id: str, error: TritonError) -> None:
        self.errors[request_id] = str(error)

    def generate(self, *request_ids: str) -> None:
        for request_id in request_ids:
            self.channel.generate(request_id, request_id.encode())

    @property
    def batches(self) -> list[list[bytes]]:
        return [tensors["engine_request"] for tensors in self.connection.sent if "engine_request" in tensors]

    def finish(self, *request_ids: str) -> None:
        outputs = [EngineCoreOutput(request_id, [1], finish_reason=FinishReason.STOP) for request_id in request_ids]
        payload = msgspec.msgpack.encode([EngineCoreOutputs(outputs=outputs)])
        self.connection.answer({"engine_outputs": payload}, None)


@pytest.fixture
async def setting() -> Setting:
    setting = Setting()
    callbacks = ChannelCallbacks(lambda step: None, setting.refuse, lambda announcement: "1")
    setting.channel = await ReplicaChannel.open(setting.connection, callbacks, decode_steps, 1)
    setting.connection.sent.clear()
    return setting


async def test_what_is_asked_for_in_one_turn_travels_together(setting: Setting) -> None:
    setting.generate("g1", "g2")
    await asyncio.sleep(0)
    setting.generate("g3")
    await asyncio.sleep(0)
    assert setting.batches == [[b"g1", b"g2"], [b"g3"]]
    assert [len(tensors["engine_channel"]) for tensors in setting.connection.sent] == [2, 1]


async def test_a_batch_has_an_end(setting: Setting) -> None:
    setting.generate(*(str(number) for number in range(MAX_BATCH + 1)))
    await asyncio.sleep(0)
    assert [len(batch) for batch in setting.batches] == [MAX_BATCH, 1]


async def test_a_batch_is_forgotten_with_the_last_of_its_generations(setting: Setting) -> None:
    setting.generate("g1", "g2", "g3")
    await asyncio.sleep(0)
    setting.finish("g1")
    setting.channel.abort(["g2"])
    assert len(setting.connection.waiting) == 2, "the channel and the batch"
    setting.finish("g3")
    assert len(setting.connection.waiting) == 1


async def test_one_that_is_refused_fails_alone(setting: Setting) -> None:
    setting.generate("g1", "g2")
    await asyncio.sleep(0)
    setting.connection.answer_last({"engine_refused": string('{"g2": "temperature: too hot [INVALID_ARG]"}')}, None)
    assert setting.errors == {"g2": "temperature: too hot"}
    setting.finish("g1")
    assert len(setting.connection.waiting) == 1


async def test_a_batch_that_is_refused_fails_as_far_as_it_runs(setting: Setting) -> None:
    setting.generate("g1", "g2", "g3")
    await asyncio.sleep(0)
    setting.finish("g2")
    setting.connection.answer_last(None, EngineUnavailable("fenced"))
    assert sorted(setting.errors) == ["g1", "g3"]


async def test_an_abort_goes_out_after_its_generations_and_takes_back_those_that_wait(setting: Setting) -> None:
    setting.generate("g1", "g2")
    await asyncio.sleep(0)
    setting.generate("g3")
    setting.channel.abort(["g2", "g3", "g1"])
    await asyncio.sleep(0)
    assert [list(tensors) for tensors in setting.connection.sent] == [
        ["engine_channel", "engine_request"],
        ["engine_channel", "engine_abort"],
    ]
    assert msgspec.msgpack.decode(setting.connection.sent[1]["engine_abort"]) == ["g2", "g1"]


async def test_a_connection_that_ends_fails_what_waits(setting: Setting) -> None:
    setting.generate("g1")
    setting.connection.closed.set_result("gone")
    await asyncio.sleep(0)
    assert setting.errors == {"g1": "The engine is not available: gone"}
    with pytest.raises(EngineUnavailable, match="gone"):
        setting.generate("g2")


class Renewal:
    """A channel that continues on a new request after two messages; the versions announced on it, in order."""

    channel: ReplicaChannel

    def __init__(self) -> None:
        self.connection: Any = Connection()
        self.versions: list[str | None] = []

    def announce(self, opening: int, version: str) -> None:
        payload = msgspec.msgpack.encode([EngineCoreOutputs(weight_version=version)])
        self.connection.openings[opening]({"engine_outputs": payload}, None)

    def end(self, opening: int) -> None:
        self.connection.openings[opening]({"engine_outputs": msgspec.msgpack.encode([])}, None)


@pytest.fixture
async def renewal(monkeypatch: pytest.MonkeyPatch) -> Renewal:
    monkeypatch.setattr(replica_channel, "RENEW_AFTER_MESSAGES", 2)
    renewal = Renewal()
    callbacks = ChannelCallbacks(
        lambda step: renewal.versions.append(step.weight_version), lambda request_id, error: None, lambda told: "1"
    )
    renewal.channel = await ReplicaChannel.open(renewal.connection, callbacks, decode_steps, 1)
    return renewal


async def test_a_channel_continues_on_a_new_request_and_keeps_the_order_of_its_messages(renewal: Renewal) -> None:
    renewal.announce(0, "v1")
    assert len(renewal.connection.openings) == 2
    renewal.announce(1, "v3")  # overtakes what is left on the first request
    renewal.announce(0, "v2")
    assert renewal.versions == ["v1", "v2"]
    renewal.end(0)
    assert renewal.versions == ["v1", "v2", "v3"]
    assert renewal.channel.is_open
    renewal.announce(1, "v4")
    assert len(renewal.connection.openings) == 3, "again after as many messages"
    assert len(renewal.connection.waiting) == 2, "the first request is forgotten"


async def test_a_channel_whose_new_request_is_refused_stays_where_it_is(renewal: Renewal) -> None:
    renewal.announce(0, "v1")
    renewal.connection.openings[1](None, EngineUnavailable("busy"))
    renewal.announce(0, "v2")
    assert (len(renewal.connection.openings), renewal.channel.is_open) == (2, True)
    renewal.announce(0, "v3")
    assert len(renewal.connection.openings) == 3, "tries again"
    assert renewal.versions == ["v1", "v2", "v3"]


async def test_large_messages_count_by_their_bytes(renewal: Renewal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_channel, "RENEW_AFTER_MESSAGES", 100)
    monkeypatch.setattr(replica_channel, "RENEW_AFTER_BYTES", 1000)
    renewal.announce(0, "v" * 1000)
    assert len(renewal.connection.openings) == 2


async def test_a_channel_that_ends_without_a_new_request_is_closed(renewal: Renewal) -> None:
    renewal.connection.openings[0]({}, None)
    assert renewal.channel.closed.result() == "Triton closed the channel"
