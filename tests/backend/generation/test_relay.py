"""The relay: announcements of adapters are confirmed by front ends, and queued steps share a message."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import PrefillStats, PrefixCacheStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder

from tritonlive.backend.generation import channel_writer, relay
from tritonlive.backend.generation.front_end_generation import FrontEndBatch, FrontEndGeneration
from tritonlive.backend.generation.relay import Relay
from tritonlive.backend.vllm_seam.messages import RelayedOutputs
from tritonlive.backend.weights.history import InFlight
from tritonlive.wire.kept_tokens import KeptStep, KeptTokens


class Writer:
    """Records what was sent, by sender."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, np.ndarray]]] = []
        self.finished: list[str] = []
        self.jobs: list[Callable[[], None]] = []

    def call(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def send(self, sender: Any, tensors: dict[str, np.ndarray], *, final: bool) -> None:
        assert not final
        self.sent.append((sender, tensors))

    def finish(self, sender: str) -> None:
        self.finished.append(sender)

    def announced(self) -> list[tuple[str, Any]]:
        return [(sender, json.loads(tensors["engine_adapters"].item())) for sender, tensors in self.sent]


class Setting:
    """A relay without an engine; its adapters only have a serial."""

    def __init__(self) -> None:
        self.writer: Any = Writer()
        self.adapters: Any = SimpleNamespace(
            serial="1", announcement=lambda: json.dumps({"serial": self.adapters.serial})
        )
        hooks: Any = {"on_start": lambda hook: None, "on_death": lambda hook: None, "is_running": False}
        engine: Any = SimpleNamespace(loop=asyncio.get_running_loop(), **hooks)
        grammars: Any = None  # no generation here has one
        self.relay: Any = Relay(engine, self.writer, self.adapters, InFlight(), grammars)


async def test_an_announcement_returns_when_every_front_end_has_taken_it() -> None:
    setting = Setting()
    setting.relay.open(b"a", "sender a")
    setting.relay.open(b"b", "sender b")
    assert setting.writer.announced() == [("sender a", {"serial": "1"}), ("sender b", {"serial": "1"})], (
        "when they open"
    )
    assert all("engine_outputs" in tensors for _, tensors in setting.writer.sent)
    setting.relay.seen(b"a", "1")
    setting.adapters.serial = "2"
    announcing = asyncio.create_task(setting.relay.announce_adapters())
    await asyncio.sleep(0.01)
    assert setting.writer.announced()[2:] == [("sender a", {"serial": "2"}), ("sender b", {"serial": "2"})]
    setting.relay.seen(b"a", "2")
    setting.relay.seen(b"b", "1")
    setting.relay.seen(b"unknown", "2")
    await asyncio.sleep(0.01)
    assert not announcing.done(), "b has only taken the one before"
    setting.relay.seen(b"b", "2")
    await asyncio.wait_for(announcing, 10)


async def test_a_front_end_that_goes_or_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SEEN_TIMEOUT_S", 0.1)
    setting = Setting()
    await asyncio.wait_for(setting.relay.announce_adapters(), 10)  # no front end
    setting.relay.open(b"silent", "sender")
    await asyncio.wait_for(setting.relay.announce_adapters(), 10)
    monkeypatch.setattr(relay, "SEEN_TIMEOUT_S", 60)
    announcing = asyncio.create_task(setting.relay.announce_adapters())
    await asyncio.sleep(0.01)
    (channel,) = setting.relay.channels()
    setting.relay.close(channel)
    await asyncio.wait_for(announcing, 10)
    assert setting.writer.finished == ["sender"]


class Sender:
    """Records what is sent on it."""

    def __init__(self) -> None:
        self.messages: list[list[EngineCoreOutputs]] = []
        self._decoder = MsgpackDecoder(list[RelayedOutputs])

    def send(self, tensors: dict[str, np.ndarray], *, final: bool) -> None:
        assert not final
        self.messages.append(self._decoder.decode(tensors["engine_outputs"].tobytes()))


async def test_what_waits_for_the_writer_travels_together_and_is_counted() -> None:
    sender = Sender()
    setting = Setting()
    setting.relay.open(b"a", sender)
    setting.relay.announce("step-1")
    setting.relay.announce("step-2")
    (write,) = setting.writer.jobs
    write()
    assert len(sender.messages) == 1
    sent = setting.relay.channel_writer
    assert (sent.num_messages, sent.num_steps) == (1, 2)


def statistics(num_running: int, hits: int = 0) -> EngineCoreOutputs:
    """A step with statistics only."""
    caching = PrefixCacheStats(requests=1, queries=hits, hits=hits) if hits else PrefixCacheStats()
    return EngineCoreOutputs(
        scheduler_stats=SchedulerStats(num_running_reqs=num_running, prefix_cache_stats=caching), weight_version="v1"
    )


async def test_gauges_alone_are_sent_seldom_and_counts_are_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_writer, "GAUGES_INTERVAL_S", 0.05)
    sender = Sender()
    setting = Setting()
    setting.relay.open(b"a", sender)

    def sent() -> list[tuple[int, int]]:
        """Running requests and cache hits of every step sent so far."""
        while setting.writer.jobs:
            setting.writer.jobs.pop()()
        stats = [step.scheduler_stats for message in sender.messages for step in message]
        return [(each.num_running_reqs, each.prefix_cache_stats.hits) for each in stats if each is not None]

    for num_running in (1, 2, 3):
        assert setting.relay._distribute(statistics(num_running)) is None
    assert sent() == []
    await asyncio.sleep(0.1)
    assert sent() == [(3, 0)]
    setting.relay._distribute(statistics(4))
    setting.relay._distribute(statistics(5, hits=16))
    setting.relay._distribute(statistics(6, hits=8))
    assert sent()[1:] == [(5, 16), (6, 8)], "sent at once, and the older step is dropped"
    await asyncio.sleep(0.1)
    assert len(sent()) == 3
    setting.relay._distribute(statistics(7))
    (channel,) = setting.relay.channels()
    setting.relay.close(channel)
    await asyncio.sleep(0.1)
    assert len(sent()) == 3, "the channel is closed"


def whole(channel: Any, *request_ids: str) -> None:
    """Generations of the channel that are answered whole."""
    for request_id in request_ids:
        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)
        channel.generations[request_id] = FrontEndGeneration(FrontEndBatch(channel.sender, 1), params)


async def test_steps_of_kept_tokens_travel_as_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_writer, "GAUGES_INTERVAL_S", 0.05)
    setting = Setting()
    sender = Sender()
    setting.adapters.end = lambda request_id: None
    setting.relay.open(b"a", sender)
    (channel,) = setting.relay.channels()
    whole(channel, "x", "y")
    setting.relay._owners |= {"x": channel, "y": channel}
    setting.relay._in_flight.begin("x")
    setting.relay._in_flight.begin("y")

    def step(at: float, *outputs: EngineCoreOutput) -> None:
        setting.relay._distribute(EngineCoreOutputs(outputs=list(outputs), timestamp=at, weight_version="v1"))

    def sent() -> list[Any]:
        while setting.writer.jobs:
            setting.writer.jobs.pop()()
        return [step for message in sender.messages for step in message]

    first = [EngineCoreOutput(request_id, [1], prefill_stats=PrefillStats()) for request_id in "xy"]
    step(1.0, *first)
    step(2.0, EngineCoreOutput("x", [2]), EngineCoreOutput("y", [2]))
    step(4.0, EngineCoreOutput("x", [3]), EngineCoreOutput("y", [3, 4]))
    assert [each.kept for each in sent()] == [None]
    await asyncio.sleep(0.1)
    (counts,) = sent()[1:]
    assert (counts.outputs, counts.weight_version) == ([], None)
    assert counts.kept == KeptTokens([KeptStep(2.0, 2, {1.0: 2}), KeptStep(4.0, 3, {2.0: 2})])
    step(5.0, EngineCoreOutput("x", [4], finish_reason=FinishReason.LENGTH), EngineCoreOutput("y", [5]))
    (ended,) = sent()[2:]
    assert [output.new_token_ids for output in ended.outputs] == [[2, 3, 4]]
    assert ended.kept == KeptTokens([KeptStep(5.0, 1, {1.0: 1})], {"x": (4.0, 2)})
    setting.relay.flush()
    (flushed,) = sent()[3:]
    assert [output.new_token_ids for output in flushed.outputs] == [[2, 3, 4, 5]]
    assert (flushed.timestamp, flushed.kept) == (5.0, KeptTokens(is_counted=True))
    step(9.0, EngineCoreOutput("y", [6], finish_reason=FinishReason.LENGTH))
    assert [each.kept for each in sent()[4:]] == [None]
