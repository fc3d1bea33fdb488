"""The bridge between the Rust side and replicas. The replicas are fakes that know what a replica may be asked."""

import asyncio
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast

import msgspec
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.placement import Placement
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.rust.bridge import Bridge
from openai_frontend.rust.steps import decode_steps
from tests.frontend.engine_request import engine_request
from tests.frontend.test_engine_info import ENGINE_INFO

decoder = MsgpackDecoder(EngineCoreOutputs)
FENCED = TritonError("weights: fenced", HTTPStatus.SERVICE_UNAVAILABLE)
BAD_GRAMMAR = TritonError("the grammar is bad", HTTPStatus.BAD_REQUEST)


def encoded(value: object) -> bytes:
    return cast(bytes, MsgpackEncoder(size_threshold=1 << 62).encode(value)[0])


class FakeReplica:
    def __init__(self, bridge: Bridge, index: int) -> None:
        self.url, self.index = f"{index}:8001", index
        self.is_connected, self.is_slow = True, False
        self.unavailable_reason: str | None = None
        self.weight_version = "default"
        self.generations: dict[str, PlacedGeneration] = {}
        self.aborted: list[str] = []
        self.heals = False
        self._bridge = bridge

    @property
    def num_running(self) -> int:
        return len(self.generations)

    def generate(self, generation: PlacedGeneration) -> None:
        assert self.unavailable_reason is None
        self.generations[generation.request_id] = generation

    def abort(self, request_ids: Iterable[str]) -> None:
        self.aborted += [each for each in request_ids if self.generations.pop(each, None)]

    async def ask_health(self) -> None:
        if self.heals:
            self.unavailable_reason = None

    def fail(self, request_id: str, error: TritonError) -> None:
        if error.is_unavailable:
            self.unavailable_reason = str(error)
        self._bridge.failed(self, self.generations.pop(request_id), error)  # ty: ignore[invalid-argument-type]

    def step(self, **fields: Any) -> None:
        (step,) = decode_steps(encoded([EngineCoreOutputs(**fields)]))
        self._bridge.received(self, step)  # ty: ignore[invalid-argument-type]


class Setting:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.bridge = Bridge(["0:8001", "1:8001"], ENGINE_INFO, None)
        self.a, self.b = (FakeReplica(self.bridge, index) for index in range(2))
        members: list[Any] = [self.a, self.b]
        self.bridge.replicas = Replicas(members)
        self.bridge.placement = Placement(self.bridge.replicas, self.bridge.fail)
        self.bridge.attach(self.sent.append)

    def add(self, *request_ids: str, engine: int = 0) -> None:
        for request_id in request_ids:
            self.bridge.take(engine, [b"\x00", encoded(engine_request(request_id))])

    @property
    def failures(self) -> list[str]:
        outputs = [output for message in self.sent for output in decoder.decode(message).outputs]
        return [output.request_id for output in outputs if output.finish_reason is FinishReason.ERROR]


@pytest.fixture
async def setting() -> Setting:
    return Setting()


async def test_requests_spread_whichever_engine_they_were_meant_for(setting: Setting) -> None:
    setting.add("1", "2", "3", engine=0)
    assert (list(setting.a.generations), list(setting.b.generations)) == (["1", "3"], ["2"])
    assert setting.a.generations["1"].payload == encoded(engine_request("1"))


@pytest.mark.parametrize("reason", ["fenced", "version"])
async def test_a_replica_that_may_not_generate_gets_nothing(setting: Setting, reason: str) -> None:
    if reason == "fenced":
        setting.a.unavailable_reason = "fenced"
    else:
        setting.b.weight_version = "step-2"
        setting.bridge.committed("step-2")
    setting.add("1", "2", engine=0)
    assert (list(setting.a.generations), list(setting.b.generations)) == ([], ["1", "2"])


async def test_steps_pass_with_their_replicas_index_and_announcements_do_not(setting: Setting) -> None:
    setting.b.step(outputs=[EngineCoreOutput("1", [5])], weight_version="w")
    setting.b.step(weight_version="w2")
    (step,) = map(decoder.decode, setting.sent)
    assert (step.engine_index, step.outputs[0].new_token_ids, step.weight_version) == (1, [5], "w")


async def test_aborts_reach_the_replica(setting: Setting) -> None:
    setting.add("1", "2")
    setting.bridge.take(1, [b"\x01", msgspec.msgpack.encode(["2", "gone"])])
    assert (setting.a.aborted, setting.b.aborted) == ([], ["2"])


async def test_what_was_not_begun_runs_elsewhere_and_what_was_fails(setting: Setting) -> None:
    setting.add("1", "2", "3")
    setting.a.generations["3"].payload = None  # it has tokens
    setting.a.fail("1", FENCED)
    setting.a.fail("3", EngineUnavailable("gone"))
    assert list(setting.b.generations) == ["2", "1"]
    assert setting.failures == ["3"]


async def test_a_refused_request_fails_alone(setting: Setting) -> None:
    setting.add("1", "2")
    setting.a.fail("1", BAD_GRAMMAR)
    assert (setting.failures, list(setting.b.generations)) == (["1"], ["2"])


@pytest.mark.parametrize("heals", [True, False])
async def test_without_a_replica_they_are_asked_first(setting: Setting, heals: bool) -> None:
    for replica in (setting.a, setting.b):
        replica.unavailable_reason = "fenced"
    setting.a.heals = heals
    setting.add("1")
    await asyncio.sleep(0.05)
    assert (list(setting.a.generations), setting.failures) == ((["1"], []) if heals else ([], ["1"]))


async def test_control_is_refused(setting: Setting) -> None:
    setting.bridge.take(1, [b"\x03", msgspec.msgpack.encode([0, 7, "collective_rpc", ["x", None]])])
    (answer,) = map(decoder.decode, setting.sent)
    assert answer.engine_index == 1
    assert answer.utility_output is not None
    assert answer.utility_output.call_id == 7
    assert "collective_rpc is not served on this port" in str(answer.utility_output.failure_message)


@pytest.mark.parametrize("frames", [[b"\x09", b"x"], [b"\x00"], [b"\x00", b"x", b"an aux frame"]])
async def test_a_message_of_another_version_is_an_error(setting: Setting, frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r".*"):
        setting.bridge.take(0, frames)


async def test_adapters_are_acknowledged(setting: Setting) -> None:
    announcement = json.dumps({"serial": "7", "adapters": {"mine": "v1"}})
    assert setting.bridge.adapters_changed(setting.a, announcement) == "7"  # ty: ignore[invalid-argument-type]


async def test_a_new_process_does_not_inherit_generations(setting: Setting) -> None:
    setting.add("1", "2")
    later: list[bytes] = []
    setting.bridge.attach(later.append)
    assert (setting.a.aborted, setting.b.aborted) == (["1"], ["2"])
    setting.a.step(outputs=[EngineCoreOutput("x", [1])])
    assert (len(setting.sent), len(later)) == (0, 1)
    setting.bridge.attach(None)
    setting.a.step(outputs=[EngineCoreOutput("x", [1])])
    assert len(later) == 1
