"""The service, from Triton's requests to its response senders, over an engine without a model."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.backend.compiler import FakeCompiler
from tests.backend.serving_engine import CONTROL_KEY, ServingEngine
from tests.triton_stand_in import Request, TritonError, tensor
from tritonlive.backend import service as service_module
from tritonlive.backend.generation import generate
from tritonlive.backend.grammars.messages import Ended, Rejected
from tritonlive.backend.responses import Sender, code_of
from tritonlive.backend.service import Service
from tritonlive.wire.error_codes import ErrorCode

FINAL = 1


class TritonSender:
    """Triton's response sender; any call after the last response fails."""

    def __init__(self) -> None:
        self.is_marked = False
        """Whether the client has cancelled the request."""
        self.is_closed = False
        self.answers: list[dict[str, np.ndarray]] = []
        self.error: TritonError | None = None
        self.failure: Exception | None = None
        """Raised instead of sending a response that is not the last."""

    def send(self, response: Any = None, *, flags: int) -> None:
        assert not self.is_closed
        if self.failure is not None and flags != FINAL:
            raise self.failure
        self.is_closed = flags == FINAL
        if response is not None and hasattr(response, "error"):
            self.error = response.error
        elif response is not None:
            self.answers.append({each.name: each.array for each in response.output_tensors})

    def is_cancelled(self) -> bool:
        assert not self.is_closed
        return self.is_marked


class Writer:
    """A writer without a thread. It runs jobs at once, and a failed job fails the test."""

    queue_length = 0

    def __init__(self) -> None:
        self.num_drained = 0
        self.is_closed = False

    def call(self, job: Callable[[], object]) -> None:
        assert not self.is_closed
        job()

    def send(self, sender: Sender, tensors: dict[str, np.ndarray], final: bool) -> None:
        sender.send(tensors, final)

    def finish(self, sender: Sender) -> None:
        sender.finish()

    def fail(self, sender: Sender, error: Exception) -> None:
        assert isinstance(code_of(error), ErrorCode)
        sender.fail(error)

    async def caught_up(self) -> None: ...

    async def drained(self) -> None:
        self.num_drained += 1

    async def is_cancelled(self, sender: Sender) -> bool:
        return sender.is_cancelled()

    def close(self) -> None:
        self.is_closed = True


class TritonRequest(Request):
    """A request with its response sender."""

    def __init__(self, **values: Any) -> None:
        super().__init__("{}", **{name: tensor(value) for name, value in values.items()})
        self.sender = TritonSender()

    def get_response_sender(self) -> TritonSender:
        return self.sender


class Setting:
    """A service, its engine and its writer."""

    def __init__(self, folder: Path) -> None:
        self.engine = ServingEngine(folder)
        self.writer = Writer()
        engine: Any = self.engine
        writer: Any = self.writer
        self.compiler = FakeCompiler()
        compiler: Any = self.compiler
        self.service = Service(engine, writer, compiler)

    def submit(self, **values: Any) -> TritonSender:
        request = TritonRequest(**values)
        self.service.submit([request])
        return request.sender

    async def ask(self, **values: Any) -> TritonSender:
        """Submit a request and wait for its last response."""
        sender = self.submit(**values)
        await until(lambda: sender.is_closed)
        return sender

    async def control(self, operation: str, key: str = CONTROL_KEY, **arguments: Any) -> TritonSender:
        return await self.ask(control_operation=operation, control_key=key, control_arguments=json.dumps(arguments))


async def until(is_over: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_over():  # noqa: ASYNC110 - conditions of many kinds
            await asyncio.sleep(0.005)


@pytest.fixture
async def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(service_module, "CANCELLATION_INTERVAL_S", 0.02)
    monkeypatch.setattr(service_module, "METRICS_INTERVAL_S", 0.02)
    monkeypatch.setattr(gc, "freeze", lambda: None)

    async def render(_llm: Any, prompt: Any) -> Any:
        return prompt

    monkeypatch.setattr(generate, "render", render)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    setting = Setting(tmp_path)
    await setting.engine.boot()
    setting.service.start()
    yield setting
    await setting.engine.close()
    setting.engine.stop_error = None
    setting.service.stop()


def engine_request(request_id: str, *, is_whole: bool = False, regex: str | None = None) -> np.ndarray:
    kind = RequestOutputKind.FINAL_ONLY if is_whole else RequestOutputKind.DELTA
    grammar = StructuredOutputsParams(regex=regex) if regex is not None else None
    params = SamplingParams(max_tokens=8, output_kind=kind, structured_outputs=grammar)
    request = EngineCoreRequest(request_id, [1, 2], None, params, None, 0.0, None, None, None)
    frames: Any = MsgpackEncoder(size_threshold=1 << 62).encode(request)
    return np.array([[bytes(frames[0])]], dtype=np.object_)


def tokens_on(channel: TritonSender) -> list[tuple[str, list[int], str | None]]:
    """Request id, tokens and version of all outputs sent on a channel."""
    decoder = MsgpackDecoder(list[EngineCoreOutputs])
    steps = [
        step
        for answer in channel.answers
        if "engine_outputs" in answer
        for step in decoder.decode(answer["engine_outputs"].tobytes())
    ]
    return [(output.request_id, output.new_token_ids, step.weight_version) for step in steps for output in step.outputs]


# ---- native requests ------------------------------------------------------------------------------------------------


async def test_a_native_request_is_answered_and_closed(setting: Setting) -> None:
    sender = await setting.ask(text_input="Say", exclude_input_in_output=True)
    assert [answer["text_output"].tolist() for answer in sender.answers] == [[[b"Hello"]]]
    assert sender.error is None


async def test_a_stream_has_a_response_for_each_output(setting: Setting) -> None:
    setting.engine.llm.texts = ["a", "b", "c"]
    sender = await setting.ask(text_input="Say", stream=True)
    assert [answer["text_output"].item() for answer in sender.answers] == [b"a", b"b", b"c"]


async def test_requests_of_a_batch_do_not_wait_for_each_other(setting: Setting) -> None:
    endless, short = TritonRequest(text_input="x"), TritonRequest(control_operation="health")
    setting.engine.llm.is_endless = True
    setting.service.submit([endless, short])
    await until(lambda: short.sender.is_closed)
    assert not endless.sender.is_closed


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        ({}, TritonError.INVALID_ARG, "text_input: give either"),
        ({"text_input": "a", "min_weight_version": "v9"}, TritonError.ALREADY_EXISTS, "min_weight_version: "),
        ({"control_operation": "no such"}, TritonError.INVALID_ARG, "control_key: missing or wrong"),
        ({"engine_channel": "c", "engine_abort": np.zeros((1, 1), np.uint8)}, TritonError.INVALID_ARG, "engine_abort"),
    ],
)
async def test_a_bad_request_gets_its_error(setting: Setting, values: dict[str, Any], code: int, message: str) -> None:
    sender = await setting.ask(**values)
    assert sender.error is not None
    assert sender.error.number == code
    assert sender.error.text.startswith(message)


async def test_a_bug_reaches_the_client(setting: Setting) -> None:
    setting.engine.llm.bug = KeyError("not foreseen")
    sender = await setting.ask(text_input="a")
    assert sender.error is not None
    assert (sender.error.number, "not foreseen" in sender.error.text) == (TritonError.INTERNAL, True)


async def test_a_client_that_goes_ends_its_request(setting: Setting) -> None:
    setting.engine.llm.is_endless = True
    sender = setting.submit(text_input="a", stream=True)
    await until(lambda: setting.engine.llm.num_generating == 1)
    sender.is_marked = True
    await until(lambda: sender.is_closed)
    assert sender.error is not None
    assert sender.error.number == TritonError.CANCELLED
    assert setting.engine.llm.num_generating == 0


# ---- control --------------------------------------------------------------------------------------------------------


async def test_control_answers_with_json(setting: Setting) -> None:
    sender = await setting.control("get_weight_version")
    assert json.loads(sender.answers[0]["control_result"].item()) == {"weight_version": "default"}


async def test_control_needs_its_key_and_probes_do_not(setting: Setting) -> None:
    assert (await setting.control("get_weight_version", key="guess")).error is not None
    assert (await setting.ask(control_operation="health")).error is None


async def test_a_replica_that_refuses_still_takes_control(setting: Setting) -> None:
    assert (await setting.control("reset_weights")).error is None
    channel = setting.submit(engine_channel="c")
    for sender in (
        await setting.ask(text_input="a"),
        await setting.ask(engine_channel="c", engine_request=engine_request("r")),
    ):
        assert sender.error is not None
        assert (sender.error.number, "weights: dirty" in sender.error.text) == (TritonError.UNAVAILABLE, True)
    assert not channel.is_closed
    assert (await setting.control("get_weight_version")).error is None


# ---- front ends -----------------------------------------------------------------------------------------------------


async def test_tokens_travel_on_the_channel_and_the_request_is_closed(setting: Setting) -> None:
    channel = setting.submit(engine_channel="c")
    await until(lambda: bool(channel.answers))
    assert msgspec.msgpack.decode(channel.answers[0]["engine_outputs"].tobytes()) == []
    request = setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    setting.engine.put(EngineCoreOutput("r", [5]))
    setting.engine.put(EngineCoreOutput("r", [6], finish_reason=FinishReason.STOP))
    await until(lambda: request.is_closed)
    assert tokens_on(channel) == [("r", [5], "default"), ("r", [6], "default")]
    assert (request.answers, request.error) == ([], None)
    assert not channel.is_closed


async def test_a_channel_continues_on_the_request_that_opens_it_again(setting: Setting) -> None:
    first = setting.submit(engine_channel="c")
    setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    setting.engine.put(EngineCoreOutput("r", [5]))
    await until(lambda: tokens_on(first) == [("r", [5], "default")])
    second = setting.submit(engine_channel="c")
    await until(lambda: first.is_closed)
    assert msgspec.msgpack.decode(first.answers[-1]["engine_outputs"].tobytes()) == [], "tells the front end"
    setting.engine.put(EngineCoreOutput("r", [6], finish_reason=FinishReason.STOP))
    await until(lambda: bool(second.answers))
    assert tokens_on(second) == [("r", [6], "default")]
    assert (first.error, second.is_closed) == (None, False)
    second.is_marked = True
    await until(lambda: second.is_closed)


async def test_a_message_that_cannot_be_sent_closes_the_channel(setting: Setting) -> None:
    """Its tokens are lost; the front end must not wait for them."""
    channel = setting.submit(engine_channel="c")
    request = setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    channel.failure = RuntimeError("out of shared memory")
    setting.engine.put(EngineCoreOutput("r", [5]))
    await until(lambda: channel.is_closed and request.is_closed)
    assert channel.error is not None
    assert "out of shared memory" in channel.error.text
    assert setting.engine.llm.engine_core.aborted == ["r"]


async def test_a_front_end_that_goes_frees_the_engine(setting: Setting) -> None:
    channel = setting.submit(engine_channel="c")
    request = setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    channel.is_marked = True
    await until(lambda: channel.is_closed and request.is_closed)
    assert setting.engine.llm.engine_core.aborted == ["r"]


async def test_an_abort_is_closed_and_so_is_what_it_aborts(setting: Setting) -> None:
    setting.submit(engine_channel="c")
    request = setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    payload = np.frombuffer(msgspec.msgpack.encode(["r", "unknown"]), np.uint8)[np.newaxis]
    abort = await setting.ask(engine_channel="c", engine_abort=payload)
    assert abort.error is None
    assert request.is_closed
    assert setting.engine.llm.engine_core.aborted == ["r"]


async def test_the_engines_death_ends_channels_and_what_runs_on_them(setting: Setting) -> None:
    channel = setting.submit(engine_channel="c")
    request = setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    setting.engine.kill()
    await until(lambda: channel.is_closed and request.is_closed)
    again = await setting.ask(engine_channel="c")
    for sender in (channel, request, again):
        assert sender.error is not None
        assert sender.error.number == TritonError.UNAVAILABLE
    await setting.engine.boot()
    reopened = setting.submit(engine_channel="c")
    await until(lambda: bool(reopened.answers))
    assert not reopened.is_closed


async def test_a_new_version_is_announced_after_the_tokens_of_the_one_before(setting: Setting) -> None:
    """Includes the tokens that were held until the end of their generation."""
    channel = setting.submit(engine_channel="c")
    setting.submit(engine_channel="c", engine_request=engine_request("r", is_whole=True))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    for token in (5, 6, 7):
        setting.engine.put(EngineCoreOutput("r", [token]))
    await until(lambda: setting.engine.llm.engine_core.outputs.empty())
    assert tokens_on(channel) == [("r", [5], "default")]
    assert (await setting.control("update_weight_version", new_version="v1")).error is None
    assert tokens_on(channel) == [("r", [5], "default"), ("r", [6, 7], "default")]
    last = MsgpackDecoder(list[EngineCoreOutputs]).decode(channel.answers[-1]["engine_outputs"].tobytes())
    assert last[-1].weight_version == "v1"


# ---- housekeeping ---------------------------------------------------------------------------------------------------


async def test_garbage_is_collected_after_requests_and_not_after_probes(setting: Setting) -> None:
    await setting.ask(control_operation="health")
    await asyncio.sleep(0.1)
    assert setting.writer.num_drained == 0
    await setting.control("get_weight_version")
    await until(lambda: setting.writer.num_drained == 1)
    await asyncio.sleep(0.1)
    assert setting.writer.num_drained == 1


async def test_metrics_are_published(setting: Setting) -> None:
    channel = setting.submit(engine_channel="c")
    setting.submit(engine_channel="c", engine_request=engine_request("r"))
    await until(lambda: bool(setting.engine.llm.engine_core.added))
    setting.engine.put(EngineCoreOutput("r", [5, 6], finish_reason=FinishReason.STOP))
    await until(lambda: bool(tokens_on(channel)))
    metrics: Any = setting.service._metrics
    engine, own = metrics._engine._metrics, metrics._own._metrics
    await until(lambda: engine["generation_tokens_total"].value == 2)
    assert own["channel_messages_total"].value == 1
    assert metrics._ended._metrics["stop"].value == 1
    tokens = metrics._histograms["request_generation_tokens"]
    await until(lambda: tokens._totals._metrics["_sum"].value == 2)
    buckets = {le: metric.value for le, metric in tokens._buckets._metrics.items()}
    assert (buckets["1.0"], buckets["2.0"], buckets["100.0"], buckets["+Inf"]) == (0, 1, 1, 1)
    assert metrics._build._metrics["build_info"].value == 1


def exists(folder: str) -> bool:
    return Path(folder).exists()


async def test_everything_is_closed_when_the_model_stops(setting: Setting) -> None:
    folder = setting.service._adapters._folder.name
    assert exists(folder)
    await setting.engine.close()
    setting.service.stop()
    assert (setting.engine.is_stopped, setting.writer.is_closed, exists(folder)) == (True, True, False)


async def test_everything_else_is_closed_when_the_engine_does_not_stop(setting: Setting) -> None:
    folder = setting.service._adapters._folder.name
    setting.engine.stop_error = RuntimeError("the engine does not stop")
    await setting.engine.close()
    with pytest.raises(RuntimeError, match="does not stop"):
        setting.service.stop()
    assert (setting.writer.is_closed, exists(folder)) == (True, False)


# ---- grammars, and generations that fail ----------------------------------------------------------------------------


def refusals(sender: TritonSender) -> dict[str, str]:
    """Message by request id."""
    told = [json.loads(answer["engine_refused"].item()) for answer in sender.answers if "engine_refused" in answer]
    return {request_id: message for each in told for request_id, message in each.items()}


async def begin(setting: Setting, *payloads: np.ndarray) -> TritonSender:
    """Submit generations of one front end as one request."""
    setting.submit(engine_channel="c")
    channels = np.array([[b"c"]] * len(payloads), dtype=np.object_)
    return setting.submit(engine_channel=channels, engine_request=np.concatenate(payloads))


async def test_a_batch_does_not_wait_for_a_new_grammar(setting: Setting) -> None:
    setting.compiler.gate = asyncio.Event()
    sender = await begin(setting, engine_request("grammar", regex="a"), engine_request("plain"))
    core = setting.engine.llm.engine_core
    await until(lambda: len(core.added) == 1)
    assert core.added[0].request_id == "plain"
    setting.compiler.gate.set()
    await until(lambda: len(core.added) == 2)
    assert core.added[1].sampling_params.structured_outputs._backend == "xgrammar"
    for request_id in ("grammar", "plain"):
        setting.engine.put(EngineCoreOutput(request_id, [1], finish_reason=FinishReason.STOP))
    await until(lambda: sender.is_closed)


async def test_a_grammar_that_cannot_be_compiled_ends_its_generation_alone(setting: Setting) -> None:
    setting.compiler.results["bad"] = Ended(0, Rejected("no such rule"))
    sender = await begin(setting, engine_request("a", regex="bad"), engine_request("b"))
    await until(lambda: bool(refusals(sender)))
    expected = "structured_outputs: the grammar cannot be compiled: no such rule [INVALID_ARG]"
    assert refusals(sender) == {"a": expected}
    assert not sender.is_closed
    again = setting.submit(engine_channel="c", engine_request=engine_request("c", regex="bad"))
    await until(lambda: again.is_closed)
    assert refusals(again) == {"c": expected}


async def test_an_abort_ends_the_compilation(setting: Setting) -> None:
    setting.compiler.gate = asyncio.Event()
    sender = await begin(setting, engine_request("a", regex="a"))
    await until(lambda: bool(setting.compiler.jobs))
    payload = np.frombuffer(msgspec.msgpack.encode(["a"]), np.uint8)
    setting.submit(engine_channel="c", engine_abort=payload[None])
    await until(lambda: sender.is_closed)
    await until(lambda: setting.compiler.num_cancelled == 1)
    assert setting.engine.llm.engine_core.added == []


async def test_a_native_client_that_goes_ends_the_compilation(setting: Setting) -> None:
    setting.compiler.gate = asyncio.Event()
    sender = setting.submit(text_input="a", sampling_parameters='{"structured_outputs": {"regex": "a"}}')
    await until(lambda: bool(setting.compiler.jobs))
    sender.is_marked = True
    await until(lambda: setting.compiler.num_cancelled == 1)
    await until(lambda: sender.is_closed)


async def test_a_native_grammar_that_cannot_be_compiled_is_refused(setting: Setting) -> None:
    setting.compiler.results["bad"] = Ended(0, Rejected("no such rule"))
    sender = await setting.ask(text_input="a", sampling_parameters='{"structured_outputs": {"regex": "bad"}}')
    assert sender.error is not None
    assert (sender.error.number, "no such rule" in sender.error.text) == (TritonError.INVALID_ARG, True)
    assert setting.engine.llm.num_generating == 0


async def test_a_generation_that_fails_in_the_engine_is_a_refusal(setting: Setting) -> None:
    sender = await begin(setting, engine_request("a"), engine_request("b"))
    await until(lambda: len(setting.engine.llm.engine_core.added) == 2)
    reason = {"tritonlive-grammar-error": "no such rule"}
    setting.engine.put(
        EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR),
        EngineCoreOutput("b", [], finish_reason=FinishReason.ERROR, trace_headers=reason),
    )
    await until(lambda: sender.is_closed)
    told = refusals(sender)
    assert told["a"].endswith("[INTERNAL]")
    assert told["b"] == "structured_outputs: the grammar cannot be compiled: no such rule [INVALID_ARG]"


async def test_a_miss_of_an_image_in_the_cache_is_left_to_vllm(setting: Setting) -> None:
    channel = setting.submit(engine_channel="c")
    sender = setting.submit(engine_channel="c", engine_request=engine_request("a"))
    await until(lambda: len(setting.engine.llm.engine_core.added) == 1)
    setting.engine.put(EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR, mm_cache_miss_hashes=["h"]))
    await until(lambda: sender.is_closed)
    assert refusals(sender) == {}
    assert tokens_on(channel) == [("a", [], "default")]


async def test_vllm_validates_no_grammar_on_the_loop(setting: Setting) -> None:
    assert setting.engine.llm.input_processor.structured_outputs_config is None
