"""The parts of the hop: the engine core that computes nothing, the client that counts tokens, the copied model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from vllm.v1.engine import FinishReason

from bench.hop import generations, server
from bench.hop.free_core import FreeCore
from bench.hop.generations import Generations, make_request
from bench.hop.server import Hop, copy_model, metric
from bench.hop_load import HopLoad
from bench.systems import Settings, Systems
from tritonlive.launch.config import StackConfig


async def go_on() -> None:
    await asyncio.sleep(0)


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_step_has_a_token_for_every_running_request_until_it_has_all() -> None:
    core = FreeCore(go_on)
    first, second, third = (make_request(tokens) for tokens in (3, 1, 1))
    await core.add_request_async(first)
    await core.add_request_async(second)
    seen: list[list[tuple[str, int, FinishReason | None]]] = []
    for _ in range(3):
        step = await core.get_output_async()
        assert step.scheduler_stats is not None
        assert step.scheduler_stats.num_running_reqs == len(step.outputs)
        seen.append([(output.request_id, len(output.new_token_ids), output.finish_reason) for output in step.outputs])
        if len(seen) == 1:
            await core.add_request_async(third)
    ended = FinishReason.LENGTH
    assert seen == [
        [(first.request_id, 1, None), (second.request_id, 1, ended)],
        [(first.request_id, 1, None), (third.request_id, 1, ended)],
        [(first.request_id, 1, ended)],
    ]


async def test_without_requests_there_is_no_step_and_an_aborted_one_is_forgotten() -> None:
    core = FreeCore(go_on)
    request = make_request(5)
    await core.add_request_async(request)
    await core.abort_requests_async([request.request_id, "unknown"])
    step = asyncio.create_task(core.get_output_async())
    await asyncio.sleep(0.01)
    assert not step.done()
    await core.add_request_async(make_request(1))
    assert len((await asyncio.wait_for(step, 10)).outputs) == 1


async def test_a_step_waits_for_its_turn() -> None:
    turn = asyncio.Event()

    async def wait() -> None:
        await turn.wait()

    core = FreeCore(wait)
    await core.add_request_async(make_request(1))
    step = asyncio.create_task(core.get_output_async())
    await asyncio.sleep(0.01)
    assert not step.done()
    turn.set()
    await asyncio.wait_for(step, 10)


async def test_tokens_and_steps_are_counted_run_after_run() -> None:
    core, counting = FreeCore(go_on), Generations()
    for concurrency, max_tokens in ((4, 8), (1, 2)):
        figures = await counting.run(core, concurrency, max_tokens)
        assert (figures["completion tokens"], figures["steps"]) == (concurrency * max_tokens, max_tokens)
        assert figures["tokens/s"] == pytest.approx(concurrency * max_tokens / figures["seconds"])


async def test_a_generation_that_fails_ends_the_run() -> None:
    counting = Generations()
    running = asyncio.create_task(counting.run(FreeCore(never), concurrency=2, max_tokens=8))
    await asyncio.sleep(0.01)
    counting.on_failure("one", RuntimeError("refused"))
    counting.on_failure("other", RuntimeError("refused, too"))
    with pytest.raises(RuntimeError, match=r"refused$"):
        await asyncio.wait_for(running, 10)


async def test_tokens_that_do_not_come_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError, match="2 generations of 8 tokens"):
        await Generations().run(FreeCore(never), concurrency=2, max_tokens=8)


def test_of_the_repository_only_the_model_is_another(tmp_path: Path) -> None:
    ours, copy = StackConfig.model_repository, copy_model(tmp_path / "model_repository")
    files = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    copied = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert copied == files
    changed = {path.name for path in files if (ours / path).read_bytes() != (copy / path).read_bytes()}
    assert changed == {"model.py"}


def sent(messages: int, steps: int) -> str:
    return "\n".join(
        f'{name}{{model="llm",version="1"}} {value}.000000'
        for name, value in (("tritonlive_channel_messages_total", messages), ("tritonlive_channel_steps_total", steps))
    )


def test_a_metric_is_read_and_one_that_is_not_there_is_nought() -> None:
    assert metric(f"# HELP tritonlive_channel_steps_total Steps\n{sent(7, 9)}\n", "tritonlive_channel_steps_total") == 9
    assert metric("", "tritonlive_channel_steps_total") == 0


@pytest.fixture
def hop_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hop]:
    """hop_with(texts…): Triton's metrics return these texts in turn; the client has 4 steps of 10 tokens within 2 s."""

    def build(*texts: str) -> Hop:
        answers = iter(texts)
        monkeypatch.setattr(httpx, "get", lambda url, timeout: SimpleNamespace(text=next(answers)))
        figures = {"seconds": 2.0, "completion tokens": 40.0, "steps": 4.0}
        stack: Any = SimpleNamespace(metrics_url="")
        client: Any = SimpleNamespace(ask=lambda question: dict(figures))
        return Hop(stack, client)

    return build


def test_messages_are_those_that_the_model_sent_meanwhile(hop_with: Callable[..., Hop]) -> None:
    figures = hop_with(sent(10, 10), sent(10, 10), sent(12, 14)).generate(concurrency=10, max_tokens=4)
    assert (figures["messages/s"], figures["steps/message"], figures["tokens/message"]) == (1.0, 2.0, 20.0)


def test_a_model_that_does_not_say_is_not_waited_for_without_end(
    hop_with: Callable[..., Hop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "METRICS_TIMEOUT_S", 0.0)
    with pytest.raises(RuntimeError, match="the client has 14 steps, but Triton's metrics show 13"):
        hop_with(sent(10, 10), sent(13, 13)).generate(concurrency=10, max_tokens=4)


def test_the_load_has_one_side_which_does_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    hop: Any = SimpleNamespace(generate=lambda concurrency, max_tokens: asked.append((concurrency, max_tokens)) or {})
    monkeypatch.setattr(Systems, "hop", hop)
    load = HopLoad(concurrency=4, max_tokens=512)
    assert load.name == "hop/4"
    (side,) = load.sides(Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None))
    side.warm_up()
    side.run(seed=0)
    assert asked == [(4, 64), (4, 512)]
