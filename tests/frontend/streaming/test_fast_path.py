"""openai_frontend/streaming/fast_path.py: plain tokens bypass the stream's task, and the order is kept."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from starlette.types import Message
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.output_processor import RequestOutputCollector

from openai_frontend.guards import admission
from openai_frontend.guards.admission import EVENTS, AdmissionMiddleware
from openai_frontend.guards.unread import LimitedQueue
from openai_frontend.streaming.chunk_templates import ChunkTemplates
from openai_frontend.streaming.fast_path import FastPathMiddleware, StreamFastPath, current, is_transparent
from openai_frontend.streaming.templated import templated

from .test_weight_spans import output, result


class Client:
    """Behaves like uvicorn's `send`: it waits while the client does not read."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Message) -> None:
        if not self.reads.is_set():
            await self.reads.wait()
        assert message["more_body"]
        self.received.append(message["body"].decode())


class Stream:
    """A generation's queue, vLLM's generator of events, and the task that sends them; `received` by the client."""

    def __init__(self) -> None:
        self.client = Client()
        self.fast_path = StreamFastPath(self.client.send)
        self.given: list[list[int]] = []  # token ids of what vLLM's generator was given
        self.queue = RequestOutputCollector(RequestOutputKind.DELTA, "r")
        self.fast_path.watch(self.queue)
        assert isinstance(self.queue, LimitedQueue)
        self.queue.limit_unread(1000, lambda queue: pytest.fail(f"{queue} overflows"))
        self.task = asyncio.create_task(self._run())

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def put(self, text: str, token: int, finish_reason: str | None = None) -> None:
        step = result(output(0, [token], text=text))
        step.outputs[0].finish_reason = finish_reason
        self.queue.put(step)

    async def _results(self) -> AsyncIterator[Any]:
        while True:
            yield await self.queue.get()

    async def _build(self, results: AsyncIterator[RequestOutput]) -> AsyncGenerator[str, None]:
        async for each in results:
            self.given.append(list(each.outputs[0].token_ids))
            yield f'data: {{"text":"{each.outputs[0].text}"}}'
            if each.outputs[0].finish_reason is not None:
                return

    async def _run(self) -> None:
        events = templated(
            self._results(),
            lambda step: (0, step),
            self._build,
            templates=ChunkTemplates("text"),
            finish=lambda first, step: str,
            fast_path=self.fast_path,
        )
        async for event in events:
            await self.client.send({"type": "http.response.body", "body": event.encode(), "more_body": True})


@pytest.fixture
async def stream() -> Stream:
    stream = Stream()
    await stream.settle()
    return stream


def texts(*pieces: str) -> list[str]:
    return [f'data: {{"text":"{piece}"}}' for piece in pieces]


async def begin(stream: Stream) -> None:
    """The first event is vLLM's; afterwards the fast path is open."""
    stream.put("a", 1)
    assert stream.client.received == []
    await stream.settle()
    assert stream.client.received == texts("a")


async def test_plain_tokens_are_sent_without_the_streams_task(stream: Stream) -> None:
    await begin(stream)
    stream.put("b", 2)
    stream.put("ü", 3)
    assert stream.client.received == texts("a", "b", "ü"), "nothing else ran meanwhile"
    stream.put("d", 4, finish_reason="stop")
    await stream.task
    assert stream.client.received == texts("a", "b", "ü", "d")
    assert stream.given == [[1], [2, 3, 4]], "vLLM counts all tokens"


async def test_what_follows_something_that_waits_waits_behind_it(stream: Stream) -> None:
    await begin(stream)
    stream.queue.put(result(output(0, [2], text="b"), output(1, [2], text="?")))  # the second choice has no template
    stream.put("c", 3)
    assert stream.client.received == texts("a")
    await stream.settle()
    assert stream.client.received == texts("a", "bc")
    stream.put("d", 4)
    assert stream.client.received == texts("a", "bc", "d"), "open again"


async def test_a_client_that_does_not_read_is_waited_for(stream: Stream) -> None:
    await begin(stream)
    stream.client.reads.clear()
    stream.put("b", 2)
    stream.put("c", 3)
    await stream.settle()
    stream.put("d", 4)
    assert stream.client.received == texts("a")
    stream.client.reads.set()
    await stream.settle()
    assert stream.client.received == texts("a", "bc", "d"), "each once, in order"
    stream.put("e", 5, finish_reason="stop")
    await stream.task
    assert stream.given == [[1], [2, 3, 4, 5]]


async def test_an_error_takes_the_regular_path(stream: Stream) -> None:
    await begin(stream)
    stream.queue.put(ValueError("broke"))
    with pytest.raises(ValueError, match="broke"):
        await stream.task


async def test_a_request_of_several_generations_has_no_fast_path(stream: Stream) -> None:
    stream.fast_path.watch(RequestOutputCollector(RequestOutputKind.DELTA, "other"))
    await begin(stream)
    stream.put("b", 2)
    assert stream.client.received == texts("a")


async def test_a_second_generation_shuts_an_open_one(stream: Stream) -> None:
    await begin(stream)
    stream.fast_path.watch(RequestOutputCollector(RequestOutputKind.DELTA, "other"))
    stream.put("b", 2)
    assert stream.client.received == texts("a")
    await stream.settle()
    assert stream.client.received == texts("a", "b")


async def test_it_ends_with_its_stream(stream: Stream) -> None:
    await begin(stream)
    stream.task.cancel()
    await asyncio.gather(stream.task, return_exceptions=True)
    stream.put("b", 2)
    assert stream.client.received == texts("a")


async def test_every_http_request_has_its_own(stream: Stream) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current.get())

    for _ in range(2):
        await asyncio.create_task(FastPathMiddleware(app)({"type": "http"}, None, stream.client.send))  # ty: ignore[invalid-argument-type]
    assert len(set(seen)) == 2
    assert current.get() is None


@pytest.mark.parametrize(
    ("arguments", "variable", "expected"),
    [
        ([], "", True),
        (["--enable-request-id-headers"], "", True),
        (["--middleware", f"{__name__}.user_middleware"], "", False),
        ([], "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", False),
    ],
)
def test_only_an_app_whose_middlewares_are_known_gets_fast_paths(
    arguments: list[str], variable: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's app. An upgrade that adds a middleware fails here and needs a review."""
    if variable:
        monkeypatch.setenv(variable, "true")
    app = build_app(make_arg_parser(FlexibleArgumentParser()).parse_args(arguments), ("generate",), None)
    assert is_transparent(app) is expected


async def user_middleware(request: Any, call_next: Any) -> Any:
    return await call_next(request)


async def test_a_held_start_is_sent_before_the_fast_path_sends_anything() -> None:
    sent: list[Message] = []
    running: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send_inside: Any) -> None:
        stream = Stream()
        running.set_result(stream)
        stream.client.send = send_inside
        path, admitted = current.get(), admission.current.get()
        assert path is not None
        assert admitted is not None
        stream.fast_path._send = path._send
        admitted.watch(stream.queue)
        await send_inside({"type": "http.response.start", "status": 200, "headers": [(b"content-type", EVENTS)]})
        await send_inside({"type": "http.response.body", "body": b"created", "more_body": True})
        await stream.task

    async def answer_error(request: Any, error: Exception) -> Any:
        raise error

    served = FastPathMiddleware(AdmissionMiddleware(app, answer_error))
    task = asyncio.create_task(served({"type": "http"}, pytest.fail, send))
    stream = await running
    await stream.settle()
    assert sent == []
    stream.queue.put(result(output(0, [], text="")))  # an output, of which vLLM makes an event without a template
    stream.put("a", 1)
    await stream.settle()
    before = len(sent)
    stream.put("b", 2)
    assert len(sent) == before + 1, "the fast path is open"
    stream.put("c", 3, finish_reason="stop")
    await task
    assert [message["type"] == "http.response.start" for message in sent].index(True) == 0
    assert sent[1]["body"] == b"created"
    assert "".join(message["body"].decode() for message in sent[2:]).endswith("".join(texts("b", "c")))
