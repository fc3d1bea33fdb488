"""openai_frontend/replicas/replica.py over a fake connection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import Any, cast

import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas import replica as module
from openai_frontend.replicas.connection import Contents, OnAnswer, TritonConnection
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.replica import Replica
from tests.frontend.test_engine_info import ENGINE_INFO

FENCED = TritonError("weights: fenced", HTTPStatus.SERVICE_UNAVAILABLE)


class FakeConnection:
    """A fake channel that always opens. `server` answers its questions to the model."""

    def __init__(self, server: "FakeServer") -> None:
        self.credentials: dict[str, str] = {}
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.server = server
        self.waiting: dict[str, OnAnswer] = {}

    def send(self, request_id: str, tensors: dict[str, Any], on_answer: OnAnswer) -> None:
        if self.closed.done():
            raise EngineUnavailable(self.closed.result())
        self.waiting[request_id] = on_answer
        if list(tensors) == ["engine_channel"]:
            self.server.channel = on_answer
            on_answer(message([]), None)

    async def has_model(self, timeout_s: float) -> bool:
        self.server.asked_after_close = self.server.asked_after_close or self.closed.done()
        if not self.server.is_up:
            raise EngineUnavailable("Triton does not answer")
        return self.server.has_model

    def forget(self, request_id: str) -> None:
        self.waiting.pop(request_id, None)

    async def control(
        self, operation: str, arguments: dict[str, Any], key: str | None, timeout_s: float, payload: bytes | None = None
    ) -> Any:
        if operation == "health":
            if self.server.is_silent:
                answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self.waiting["health"] = lambda contents, error: answer.set_exception(cast(TritonError, error))
                return await asyncio.wait_for(answer, timeout_s)
            if self.server.refusal is not None:
                raise self.server.refusal
            return {"healthy": True}
        if self.server.is_hanging:
            raise EngineUnavailable("no answer to describe within 10 s")
        return asdict(self.server.engine_info) | {"weight_version": self.server.weight_version}

    async def close(self) -> None:
        self.lose("closed")

    def lose(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
            waiting, self.waiting = self.waiting, {}
            for on_answer in waiting.values():
                on_answer(None, EngineUnavailable(reason))


class FakeServer:
    def __init__(self) -> None:
        self.engine_info = ENGINE_INFO
        self.weight_version = "default"
        self.refusal: TritonError | None = None
        self.is_up = True
        self.has_model = True
        self.is_silent = False
        self.is_hanging = False
        self.asked_after_close = False
        self.channel: OnAnswer = lambda result, error: None
        self.connections: list[FakeConnection] = []

    async def connect(self, url: str, timeout_s: float, key: str | None = None) -> FakeConnection:
        if not self.is_up:
            raise EngineUnavailable("Triton does not answer")
        self.connections.append(FakeConnection(self))
        return self.connections[-1]


decode_steps = MsgpackDecoder(list[EngineCoreOutputs]).decode


class Listener:
    def __init__(self) -> None:
        self.versions: list[str] = []
        self.failures: dict[str, TritonError] = {}
        self.steps: list[EngineCoreOutputs] = []

    def received(self, replica: Replica, step: EngineCoreOutputs) -> None:
        self.steps.append(step)

    def failed(self, replica: Replica, generation: PlacedGeneration, error: TritonError) -> None:
        self.failures[generation.request_id] = error

    def committed(self, version: str) -> None:
        self.versions.append(version)

    def adapters_changed(self, replica: Replica, announcement: str) -> str:
        return announcement


def message(steps: list[EngineCoreOutputs]) -> Contents:
    return {"engine_outputs": cast(bytes, MsgpackEncoder(size_threshold=1 << 62).encode(steps)[0])}


CLOSING: Contents = {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(TritonConnection, "connect", fake.connect)
    monkeypatch.setattr(module, "HEALTH_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "RECONNECT_INTERVAL_S", 0.01)
    return fake


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def replica(server: FakeServer, listener: Listener) -> AsyncIterator[Replica]:
    replica = Replica(0, "a:8001", ENGINE_INFO, listener, decode_steps)
    await replica.connect()
    task = asyncio.create_task(replica.stay_connected())
    yield replica
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await replica.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of whatever a test looks at
            await asyncio.sleep(0.005)


async def test_before_it_is_reached_it_is_in_trouble(server: FakeServer, listener: Listener) -> None:
    server.is_up = False
    replica = Replica(0, "a:8001", ENGINE_INFO, listener, decode_steps)
    assert replica.unavailable_reason == "not connected yet"
    await replica.connect()
    assert (replica.is_connected, replica.unavailable_reason) == (False, "Triton does not answer")
    with pytest.raises(EngineUnavailable, match="Triton does not answer"):
        await replica.control("pause_generation", {}, None)


async def test_another_model_is_not_connected_to(
    server: FakeServer, listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # not once uvicorn has configured its loggers
    caplog.set_level(logging.WARNING, "uvicorn.error")
    server.engine_info = replace(ENGINE_INFO, model="other")
    replica = Replica(0, "a:8001", ENGINE_INFO, listener, decode_steps)
    await replica.connect()
    assert replica.unavailable_reason == "its model is 'other', and this front end was started for 'm'"
    assert server.connections[0].closed.done()
    await replica.connect()
    assert caplog.messages == [f"the replica a:8001 cannot generate: {replica.unavailable_reason}"], (
        "once, not at every attempt"
    )


async def test_fenced_and_healed(replica: Replica, server: FakeServer) -> None:
    assert replica.unavailable_reason is None
    server.refusal = FENCED
    await until(lambda: replica.unavailable_reason == "weights: fenced")
    assert replica.is_connected, "it takes control operations"
    server.refusal = None
    await until(lambda: replica.unavailable_reason is None)


async def test_fenced_from_the_start(server: FakeServer, listener: Listener) -> None:
    server.refusal = FENCED
    replica = Replica(0, "a:8001", ENGINE_INFO, listener, decode_steps)
    await replica.connect()
    assert (replica.is_connected, replica.unavailable_reason) == (True, "weights: fenced")


async def test_a_refusal_says_so_at_once(replica: Replica, server: FakeServer, listener: Listener) -> None:
    replica.generate(PlacedGeneration("1", b"request"))
    await asyncio.sleep(0)  # what comes in one turn of the loop travels together
    *_, on_answer = server.connections[0].waiting.values()
    on_answer(None, FENCED)
    assert replica.unavailable_reason == "weights: fenced"
    assert listener.failures == {"1": FENCED}
    await until(lambda: replica.unavailable_reason is None)  # by its own word


@pytest.mark.parametrize("what", ["connection", "channel"])
async def test_what_runs_on_a_lost_one_fails_and_it_comes_back(
    replica: Replica, server: FakeServer, listener: Listener, what: str
) -> None:
    replica.generate(PlacedGeneration("1", b"request"))
    replica.generate(PlacedGeneration("2", b"request"))
    if what == "connection":
        server.connections[0].lose("broke")
    else:
        server.channel(CLOSING, None)
    assert replica.unavailable_reason is not None, "nothing is sent to it from now on"
    await until(lambda: len(listener.failures) == 2)
    assert replica.generations == {}
    await until(lambda: replica.unavailable_reason is None)
    assert len(server.connections) == 2
    assert server.connections[0].closed.done()


async def test_a_model_being_unloaded_is_released_after_what_runs(replica: Replica, server: FakeServer) -> None:
    replica.generate(PlacedGeneration("1", b"request"))
    server.has_model, server.refusal = False, TritonError.parse("Request for unknown model: 'llm' is not found")
    await until(lambda: replica.unavailable_reason is not None)
    await asyncio.sleep(0.1)  # several questions about its health
    assert replica.is_connected, "what runs there goes on"
    last = EngineCoreOutput("1", [6], finish_reason=FinishReason.STOP)
    server.channel(message([EngineCoreOutputs(outputs=[last])]), None)
    await until(lambda: server.connections[0].closed.done())


async def test_what_runs_fails_when_the_models_process_has_ended(
    replica: Replica, server: FakeServer, listener: Listener
) -> None:
    """Triton goes on then, with the connection and with the channel's request, and says that the model is ready."""
    replica.generate(PlacedGeneration("1", b"request"))
    server.refusal = TritonError.parse("Stub process 'llm_0_0' is not healthy.")
    await until(lambda: list(listener.failures) == ["1"])
    assert listener.failures["1"].http_status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "the model's process in Triton has ended" in str(listener.failures["1"])
    await until(lambda: server.connections[0].closed.done())


@pytest.mark.parametrize("what", ["Triton", "the model's process"])
async def test_a_silent_one_is_released_only_when_more_than_its_engine_is_silent(
    replica: Replica, server: FakeServer, listener: Listener, what: str
) -> None:
    replica.generate(PlacedGeneration("1", b"request"))
    server.refusal = EngineUnavailable("no answer to health within 45 s")
    await asyncio.sleep(0.1)
    assert replica.is_connected, "its engine loads"
    if what == "Triton":
        server.is_up = False
    else:
        server.is_hanging = True
    await until(lambda: server.connections[0].closed.done())
    assert list(listener.failures) == ["1"]


async def test_a_connection_that_breaks_during_a_question_is_asked_nothing_more(
    replica: Replica, server: FakeServer
) -> None:
    """The question's error comes together with its cancellation, and asyncio.wait_for raises the error."""
    server.is_silent = True
    await until(lambda: "health" in server.connections[0].waiting)
    server.is_silent = False
    server.connections[0].lose("broke")
    await until(lambda: replica.is_connected and replica.unavailable_reason is None)
    assert not server.asked_after_close
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert names.count(f"health-{replica.url}") == 1


async def test_tokens_and_the_end_of_a_generation(replica: Replica, server: FakeServer, listener: Listener) -> None:
    generation = PlacedGeneration("1", b"request")
    replica.generate(generation)
    server.channel(message([EngineCoreOutputs(outputs=[EngineCoreOutput("1", [5])])]), None)
    assert (replica.num_running, generation.payload) == (1, None)
    last = EngineCoreOutput("1", [6], finish_reason=FinishReason.STOP)
    server.channel(message([EngineCoreOutputs(outputs=[last])]), None)
    assert (replica.num_running, "1" in server.connections[0].waiting) == (0, False)
    assert len(listener.steps) == 2


async def test_a_commit_is_announced_and_a_late_step_is_no_commit(
    replica: Replica, server: FakeServer, listener: Listener
) -> None:
    server.channel(message([EngineCoreOutputs(weight_version="v1")]), None)
    assert (replica.weight_version, listener.versions) == ("v1", ["v1"])
    late = EngineCoreOutputs(outputs=[EngineCoreOutput("1", [5])], weight_version="default")
    server.channel(message([late]), None)
    assert (replica.weight_version, listener.versions) == ("v1", ["v1"])


async def test_a_restart_is_no_commit_and_one_that_was_missed_is(
    replica: Replica, server: FakeServer, listener: Listener
) -> None:
    for version, committed in (("v1", ["v1"]), ("default", ["v1"]), ("v2", ["v1", "v2"])):
        server.weight_version = version
        server.connections[-1].lose("broke")
        await until(lambda version=version: replica.is_connected and replica.weight_version == version)
        assert listener.versions == committed


async def test_an_abort_forgets_what_is_here(replica: Replica, server: FakeServer) -> None:
    replica.generate(PlacedGeneration("1", b"request"))
    replica.abort(["1", "elsewhere"])
    assert (replica.generations, "1" in server.connections[0].waiting) == ({}, False)
