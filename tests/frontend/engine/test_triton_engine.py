"""openai_frontend/engine/triton_engine.py over a real gRPC server whose tokens are free, with vLLM's own AsyncLLM."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.metrics import loggers
from vllm.v1.metrics.loggers import StatLoggerBase

from bench.fast_path.free_triton import TOKEN, WEIGHT_VERSION, FreeTriton, RefusedError
from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.guards.fan_out import QueueFull
from openai_frontend.guards.limits import DEFAULTS, Limits
from openai_frontend.guards.unread import ReadTooSlow
from openai_frontend.served_error import ServedError
from openai_frontend.vllm_seam import EngineDeadError
from tests.frontend.test_engine_info import ENGINE_INFO

TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def no_second_registration() -> Iterator[None]:
    """The gauges of an engine stay in the process's registry; each test makes an engine."""
    module = "openai_frontend.engine.triton_engine"
    with mock.patch(f"{module}.ReplicaGauges"), mock.patch(f"{module}.lag_histogram"):
        yield


def config(model: Path, **options: Any) -> Any:
    with mock.patch.dict(os.environ, {"VLLM_CPU_KVCACHE_SPACE": "1"}):
        return AsyncEngineArgs(model=str(model), max_model_len=2048, **options).create_engine_config()


@pytest.fixture
async def triton() -> AsyncIterator[FreeTriton]:
    async with FreeTriton(ENGINE_INFO, step_s=0.001) as server:
        yield server


@pytest.fixture
async def engine(triton: FreeTriton, tiny_model_dir: Path) -> AsyncIterator[TritonEngineClient]:
    engine = TritonEngineClient(config(tiny_model_dir), [triton.url], ENGINE_INFO, log_stats=False)
    await engine.start(TIMEOUT_S)
    yield engine
    await engine.close()


async def generate(engine: TritonEngineClient, request_id: str = "r", **params: Any) -> list[RequestOutput]:
    sampling = SamplingParams(ignore_eos=True, output_kind=RequestOutputKind.DELTA, **params)
    (prompt,) = await engine.renderer.render_cmpl_async([{"prompt_token_ids": [1, 2, 3]}])
    async with asyncio.timeout(TIMEOUT_S):
        return [output async for output in engine.generate(prompt, sampling, request_id)]


async def test_tokens_come_through(engine: TritonEngineClient) -> None:
    outputs = await generate(engine, max_tokens=5)
    assert [token for output in outputs for token in output.outputs[0].token_ids] == [TOKEN] * 5
    assert outputs[-1].outputs[0].finish_reason == "length"
    assert "".join(output.outputs[0].text for output in outputs) == engine.renderer.get_tokenizer().decode([TOKEN] * 5)


async def test_the_answers_to_one_prompt_all_come(engine: TritonEngineClient, triton: FreeTriton) -> None:
    outputs = await generate(engine, max_tokens=3, n=4)
    found: dict[int, int] = {}
    for output in outputs:
        for choice in output.outputs:
            found[choice.index] = found.get(choice.index, 0) + len(choice.token_ids)
    assert found == dict.fromkeys(range(4), 3)


async def test_a_client_that_goes_aborts_its_generation(engine: TritonEngineClient, triton: FreeTriton) -> None:
    task = asyncio.create_task(generate(engine, max_tokens=100_000))
    async with asyncio.timeout(TIMEOUT_S):
        while not triton.running:  # noqa: ASYNC110 - the server's state is in no event
            await asyncio.sleep(0.01)
        task.cancel()
        while triton.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "engine_abort" in triton.requests[-1]
    assert not engine.output_processor.has_unfinished_requests()


async def test_a_lost_replica_ends_what_runs_and_comes_back(engine: TritonEngineClient, triton: FreeTriton) -> None:
    task = asyncio.create_task(generate(engine, max_tokens=100_000))
    async with asyncio.timeout(TIMEOUT_S):
        while not triton.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    triton.is_ready = False
    await triton.stop()
    with pytest.raises(ServedError, match="the connection to Triton"):
        await asyncio.wait_for(task, TIMEOUT_S)
    assert engine.errored
    assert isinstance(engine.dead_error, ServedError)
    with pytest.raises(ServedError, match=triton.url):
        await generate(engine, "s", max_tokens=1)
    with pytest.raises(EngineDeadError):
        await engine.check_health()


async def test_an_engine_that_may_not_generate_refuses_with_its_reason(
    engine: TritonEngineClient, triton: FreeTriton
) -> None:
    def fenced(arguments: dict[str, Any]) -> None:
        raise RefusedError("weights: fenced [UNAVAILABLE]")

    await engine.check_health()
    triton.operations["health"] = fenced
    async with asyncio.timeout(TIMEOUT_S):
        while engine.replicas.eligible():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    with pytest.raises(ServedError, match="weights: fenced"):
        await generate(engine, max_tokens=1)
    with pytest.raises(EngineDeadError):
        await engine.check_health()


async def test_without_a_replica_starting_gives_up(tiny_model_dir: Path) -> None:
    engine = TritonEngineClient(config(tiny_model_dir), ["127.0.0.1:1"], ENGINE_INFO, log_stats=False)
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        await engine.start(0.1)
    await engine.close()


async def test_control_operations_reach_the_model(engine: TritonEngineClient, triton: FreeTriton) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    for name, answer in {
        "pause_generation": {},
        "is_paused": {"is_paused": True},
        "finish_weight_update": {"weight_version": "step-1", "paused_s": 0.1},
        "reset_prefix_cache": {"ok": False},
        "list_loras": {"loras": [7, 9]},
    }.items():
        triton.operations[name] = lambda arguments, name=name, answer=answer: asked.append((name, arguments)) or answer
    await engine.pause_generation(mode="keep", clear_cache=False)
    assert await engine.is_paused()
    assert engine.weight_version == WEIGHT_VERSION
    assert (await engine.commit_weight_update("step-1", in_flight="keep"))["paused_s"] == 0.1
    assert engine.weight_version == "step-1"
    assert not await engine.reset_prefix_cache()
    assert await engine.list_loras() == {7, 9}
    assert asked == [
        ("pause_generation", {"mode": "keep", "clear_cache": False}),
        ("is_paused", {}),
        ("finish_weight_update", {"weight_version": "step-1", "in_flight": "keep"}),
        ("reset_prefix_cache", {"reset_running_requests": False, "reset_connector": False}),
        ("list_loras", {}),
    ]
    with pytest.raises(NotImplementedError):
        await engine.collective_rpc("any_method")


async def test_an_output_handler_that_failed_is_started_again(engine: TritonEngineClient) -> None:
    with mock.patch.object(engine.output_processor, "update_scheduler_stats", side_effect=ValueError("a fault")):
        await generate(engine, max_tokens=1)
        handler = engine.output_handler
        assert handler is not None
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait([handler])
    assert len(await generate(engine, "s", max_tokens=1)) == 1


async def test_an_error_of_the_model_ends_one_request_with_its_message(engine: TritonEngineClient) -> None:
    engine.engine_core.add_request_async = mock.AsyncMock(
        side_effect=lambda request: engine._fail_request(request.request_id, TritonError.parse("no [INVALID_ARG]"))
    )
    with pytest.raises(ServedError, match=r"^no$"):
        await generate(engine, max_tokens=1, n=2)
    assert not engine.output_processor.has_unfinished_requests()


async def test_what_runs_when_the_front_end_stops_is_told(engine: TritonEngineClient) -> None:
    (replica,) = engine.replicas.members
    with mock.patch.object(replica, "generate", lambda each: replica.generations.update({each.request_id: each})):
        running = asyncio.create_task(generate(engine, max_tokens=1, n=2))
        async with asyncio.timeout(TIMEOUT_S):
            while len(replica.generations) < 2:  # noqa: ASYNC110 - of a fake
                await asyncio.sleep(0.01)
    engine.end_all("the front end is stopping")
    with pytest.raises(ServedError, match="the front end is stopping"):
        await running
    assert replica.generations == {}
    assert not engine.output_processor.has_unfinished_requests()


# ---- attributes that AsyncLLM's own constructor would set -----------------------------------------------------------


async def test_with_an_otlp_endpoint_requests_are_traced(triton: FreeTriton, tiny_model_dir: Path) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with (
        mock.patch("vllm.v1.engine.async_llm.init_tracer") as init_tracer,
        mock.patch("opentelemetry.trace.get_tracer_provider", return_value=provider),
    ):
        traced = config(tiny_model_dir, otlp_traces_endpoint="http://127.0.0.1:1/v1/traces")
        engine = TritonEngineClient(traced, [triton.url], ENGINE_INFO)
        await engine.start(TIMEOUT_S)
        await generate(engine, max_tokens=3)
        await engine.close()
    init_tracer.assert_called_once_with("vllm.llm_engine", "http://127.0.0.1:1/v1/traces")
    (span,) = spans.get_finished_spans()
    assert span.name == "llm_request"
    assert (span.attributes or {})["gen_ai.usage.completion_tokens"] == 3


async def test_a_plug_in_for_statistics_gets_them(triton: FreeTriton, tiny_model_dir: Path) -> None:
    recorded: list[int] = []

    class Plugin(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            recorded.append(iteration_stats.num_generation_tokens if iteration_stats else 0)

        def log_engine_initialized(self) -> None:
            recorded.append(-1)

    with mock.patch.object(loggers, "load_plugins_by_group", return_value={"mine": Plugin}):
        engine = TritonEngineClient(config(tiny_model_dir), [triton.url], ENGINE_INFO, log_stats=False)
    await engine.start(TIMEOUT_S)
    await generate(engine, max_tokens=3)
    await engine.close()
    assert recorded[0] == -1
    assert sum(recorded[1:]) == 3


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_does_not_read_loses_its_stream_and_frees_the_engine(
    triton: FreeTriton, tiny_model_dir: Path, n: int
) -> None:
    limits = Limits(max_unread_tokens=50)
    engine = TritonEngineClient(config(tiny_model_dir), [triton.url], ENGINE_INFO, log_stats=False, limits=limits)
    await engine.start(TIMEOUT_S)
    try:
        sampling = SamplingParams(ignore_eos=True, output_kind=RequestOutputKind.DELTA, max_tokens=100_000, n=n)
        (prompt,) = await engine.renderer.render_cmpl_async([{"prompt_token_ids": [1, 2, 3]}])
        results = engine.generate(prompt, sampling, "r")
        async with asyncio.timeout(TIMEOUT_S):
            await anext(results)
            while not triton.running:  # noqa: ASYNC110 - the server's state is in no event
                await asyncio.sleep(0.01)
            while triton.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(ReadTooSlow, match="--max-unread-tokens"):
                await anext(results)
        assert not engine.output_processor.has_unfinished_requests()
        assert len(await generate(engine, "next", max_tokens=3)) > 0
    finally:
        await engine.close()


async def test_at_a_shutdown_all_generations_end_with_the_reason(
    engine: TritonEngineClient, triton: FreeTriton
) -> None:
    tasks = [asyncio.create_task(generate(engine, name, max_tokens=100_000, n=n)) for name, n in (("a", 1), ("b", 3))]
    async with asyncio.timeout(TIMEOUT_S):
        while len(triton.running) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        engine.end_all("the server is shutting down")
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ServedError)
            assert "shutting down" in str(result)
        while triton.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not engine.output_processor.has_unfinished_requests()


async def test_a_full_queue_and_bad_parameters_are_refused_before_the_first_token(engine: TritonEngineClient) -> None:
    engine.check_admission(DEFAULTS.max_generations)
    running = mock.Mock(return_value=DEFAULTS.max_queued)
    with mock.patch.object(engine, "get_num_unfinished_requests", running), pytest.raises(QueueFull):
        engine.check_admission(1)
    for params in (SamplingParams(repetition_penalty=1e39), SamplingParams(stop_token_ids=[-1])):
        with pytest.raises(VLLMValidationError):
            engine.generate({"prompt_token_ids": [1]}, params, "r")
