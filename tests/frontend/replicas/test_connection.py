"""openai_frontend/replicas/connection.py against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import pytest

from bench.fast_path.free_triton import FreeTriton, RefusedError
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.connection import Contents, TritonConnection
from tests.frontend.test_engine_info import ENGINE_INFO

TIMEOUT_S = 20


@pytest.fixture
async def triton() -> AsyncIterator[FreeTriton]:
    async with FreeTriton(ENGINE_INFO) as server:
        yield server


@pytest.fixture
async def connection(triton: FreeTriton) -> AsyncIterator[TritonConnection]:
    connection = await TritonConnection.connect(triton.url, TIMEOUT_S)
    yield connection
    await connection.close()


def refuse(text: str) -> Any:
    def operation(arguments: dict[str, Any]) -> None:
        raise RefusedError(text)

    return operation


async def test_without_a_server_connecting_says_so() -> None:
    with pytest.raises(EngineUnavailable, match=r"Triton at 127\.0\.0\.1:1 does not answer"):
        await TritonConnection.connect("127.0.0.1:1", TIMEOUT_S)


async def test_without_a_ready_model_connecting_says_so(triton: FreeTriton) -> None:
    triton.is_ready = False
    with pytest.raises(EngineUnavailable, match="has no ready model 'llm' yet"):
        await TritonConnection.connect(triton.url, TIMEOUT_S)


async def test_a_control_operation_sends_its_tensors_and_returns_its_result(
    triton: FreeTriton, connection: TritonConnection
) -> None:
    triton.operations["pause"] = lambda arguments: {"asked": arguments}
    assert await connection.control("pause", {"mode": "keep"}, "the key", TIMEOUT_S, b"\x00\xff") == {
        "asked": {"mode": "keep"}
    }
    assert triton.requests == [
        {
            "control_operation": [b"pause"],
            "control_arguments": [b'{"mode": "keep"}'],
            "control_key": [b"the key"],
            "control_payload": b"\x00\xff",
        }
    ]


async def test_without_a_key_or_a_payload_none_is_sent(triton: FreeTriton, connection: TritonConnection) -> None:
    await connection.control("health", {}, None, TIMEOUT_S)
    assert [sorted(tensors) for tensors in triton.requests] == [["control_arguments", "control_operation"]]


async def test_a_refusal_keeps_its_message_and_its_code(triton: FreeTriton, connection: TritonConnection) -> None:
    triton.operations["rollback"] = refuse("weights: no version 'x' is kept [NOT_FOUND]")
    with pytest.raises(TritonError, match=r"^weights: no version 'x' is kept$") as caught:
        await connection.control("rollback", {}, None, TIMEOUT_S)
    assert caught.value.http_status == HTTPStatus.NOT_FOUND
    assert await connection.control("health", {}, None, TIMEOUT_S) == {"healthy": True}


async def test_an_answer_that_does_not_come_is_given_up(triton: FreeTriton, connection: TritonConnection) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    triton.operations["slow"] = lambda arguments: FreeTriton.NO_ANSWER
    with pytest.raises(EngineUnavailable, match="no answer to slow within 0 s"):
        await connection.control("slow", {}, None, 0.2)
    assert 0.2 <= loop.time() - began < TIMEOUT_S


async def test_requests_go_out_in_their_order_and_answers_find_theirs(
    triton: FreeTriton, connection: TritonConnection
) -> None:
    answers: dict[str, Contents | None] = {}
    is_answered = asyncio.Event()

    def expect(request_id: str) -> Any:
        def on_answer(contents: Contents | None, error: TritonError | None) -> None:
            assert error is None
            answers[request_id] = contents
            if len(answers) == 3:
                is_answered.set()

        return on_answer

    for name in ("one", "two", "three"):
        connection.send(name, {"engine_channel": name}, expect(name))
    await asyncio.wait_for(is_answered.wait(), TIMEOUT_S)
    assert [tensors["engine_channel"] for tensors in triton.requests] == [[b"one"], [b"two"], [b"three"]]
    assert answers == {name: {"engine_outputs": b"\x90"} for name in ("one", "two", "three")}


async def test_a_forgotten_request_hears_nothing(triton: FreeTriton, connection: TritonConnection) -> None:
    def never(contents: Contents | None, error: TritonError | None) -> None:
        raise AssertionError("it was forgotten")

    connection.send("one", {"engine_channel": "a"}, never)
    connection.forget("one")
    await connection.control("health", {}, None, TIMEOUT_S)
    assert not connection.closed.done()


async def test_when_the_server_goes_every_request_hears_it_once(
    triton: FreeTriton, connection: TritonConnection
) -> None:
    heard: list[TritonError | None] = []

    def on_answer(contents: Contents | None, error: TritonError | None) -> None:
        if contents is None:
            heard.append(error)

    connection.send("one", {"engine_channel": "a"}, on_answer)
    await connection.control("health", {}, None, TIMEOUT_S)
    await triton.stop()
    reason = await asyncio.wait_for(connection.closed, TIMEOUT_S)
    assert reason.startswith("the connection to Triton")
    assert [str(error) for error in heard] == [f"The engine is not available: {reason}"]
    with pytest.raises(EngineUnavailable, match=reason.split(":", maxsplit=1)[0]):
        connection.send("two", {"engine_channel": "b"}, on_answer)
    with pytest.raises(EngineUnavailable):
        await connection.control("health", {}, None, TIMEOUT_S)
    with pytest.raises(EngineUnavailable, match="Triton does not answer"):
        await connection.has_model(1)


async def test_closing_ends_both_calls(triton: FreeTriton) -> None:
    connection = await TritonConnection.connect(triton.url, TIMEOUT_S)
    await connection.control("health", {}, None, TIMEOUT_S)
    await connection.close()
    assert connection.closed.result() == "the connection to Triton was closed"
    async with asyncio.timeout(TIMEOUT_S):
        while triton.num_streams:  # noqa: ASYNC110 - the server's end is in no event
            await asyncio.sleep(0.01)


async def test_it_says_whether_the_model_is_there(triton: FreeTriton, connection: TritonConnection) -> None:
    assert await connection.has_model(TIMEOUT_S)
    triton.is_ready = False
    assert not await connection.has_model(TIMEOUT_S)
