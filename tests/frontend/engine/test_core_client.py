"""openai_frontend/engine/core_client.py: routing of generations, and their outcomes, without sockets."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs

from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.placement import Placement
from openai_frontend.replicas.replicas import Replicas
from tests.frontend.engine_request import engine_request
from tests.frontend.test_engine_info import ENGINE_INFO

FENCED = TritonError("weights: fenced", HTTPStatus.SERVICE_UNAVAILABLE)


class FakeReplica:
    def __init__(self, url: str, index: int, client: TritonCoreClient) -> None:
        self.url, self.index, self.client = url, index, client
        self.weight_version = "default"
        self.unavailable_reason: str | None = None
        self.is_slow, self.is_connected = False, True
        self.generations: dict[str, PlacedGeneration] = {}
        self.refuses = False
        self.aborted: list[str] = []

    @property
    def num_running(self) -> int:
        return len(self.generations)

    def generate(self, generation: PlacedGeneration) -> None:
        self.generations[generation.request_id] = generation
        if self.refuses:
            self.fail(generation.request_id, FENCED)

    def fail(self, request_id: str, error: TritonError) -> None:
        self.unavailable_reason = str(error)
        self.client.failed(self, self.generations.pop(request_id), error)  # ty: ignore[invalid-argument-type]

    def abort(self, request_ids: Iterable[str]) -> None:
        self.aborted += [request_id for request_id in request_ids if self.generations.pop(request_id, None)]


class Fleet:
    """A core client over two fake replicas."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.client = TritonCoreClient(["a", "b"], ENGINE_INFO, self.failures.__setitem__)
        self.a, self.b = FakeReplica("a", 0, self.client), FakeReplica("b", 1, self.client)
        members: list[Any] = [self.a, self.b]
        self.client.placement = Placement(Replicas(members), self.failures.__setitem__)

    async def add(self, *request_ids: str) -> None:
        for request_id in request_ids:
            await self.client.add_request_async(engine_request(request_id))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_requests_spread(fleet: Fleet) -> None:
    await fleet.add("1", "2", "3", "4")
    assert (list(fleet.a.generations), list(fleet.b.generations)) == (["1", "3"], ["2", "4"])


async def test_the_children_of_one_request_stay_together(fleet: Fleet) -> None:
    with fleet.client.pinned_replica():
        await fleet.add("0_p", "1_p", "2_p")
    with fleet.client.pinned_replica():
        await fleet.add("0_q", "1_q")
    await fleet.add("after")
    assert (list(fleet.a.generations), list(fleet.b.generations)) == (["0_p", "1_p", "2_p"], ["0_q", "1_q", "after"])


async def test_children_whose_place_is_lost_go_elsewhere(fleet: Fleet) -> None:
    with fleet.client.pinned_replica():
        fleet.a.unavailable_reason = "lost"
        await fleet.add("0_p", "1_p")
    assert list(fleet.b.generations) == ["0_p", "1_p"]


async def test_one_that_is_refused_is_tried_elsewhere(fleet: Fleet) -> None:
    fleet.a.refuses = True
    await fleet.add("1")
    assert list(fleet.b.generations) == ["1"]
    assert fleet.failures == {}


async def test_but_only_once(fleet: Fleet) -> None:
    fleet.a.refuses = fleet.b.refuses = True
    await fleet.add("1")
    assert fleet.failures == {"1": FENCED}


async def test_one_that_has_begun_fails_with_its_replica_and_the_others_go_on(fleet: Fleet) -> None:
    await fleet.add("1", "2", "3", "4")
    fleet.a.generations["1"].payload = None  # its first token has come
    lost = EngineUnavailable("the connection broke")
    for request_id in list(fleet.a.generations):
        fleet.a.fail(request_id, lost)
    assert fleet.failures == {"1": lost}
    assert list(fleet.b.generations) == ["2", "4", "3"]


async def test_a_request_that_has_no_encoding_fails_by_name(fleet: Fleet) -> None:
    bad = engine_request("1")
    bad.sampling_params = SamplingParams(stop=["\ud83e"])
    await fleet.client.add_request_async(bad)
    assert str(fleet.failures["1"]).startswith("stop: cannot be sent to the engine")
    assert not fleet.a.generations
    assert not fleet.b.generations


async def test_a_fault_of_the_request_is_not_tried_again(fleet: Fleet) -> None:
    await fleet.add("1")
    bad = TritonError("engine_request: bad", HTTPStatus.BAD_REQUEST)
    fleet.a.fail("1", bad)
    assert (fleet.failures, fleet.b.generations) == ({"1": bad}, {})


async def test_without_anyone_it_fails_with_the_reasons(fleet: Fleet) -> None:
    fleet.a.unavailable_reason, fleet.b.unavailable_reason = "fenced", "lost"
    await fleet.add("1")
    assert "a: fenced; b: lost" in str(fleet.failures["1"])


async def test_an_abort_reaches_the_owner_alone(fleet: Fleet) -> None:
    await fleet.add("1", "2", "3")
    await fleet.client.abort_requests_async(["1", "2", "unknown"])
    assert (fleet.a.aborted, fleet.b.aborted) == (["1"], ["2"])
    assert list(fleet.a.generations) == ["3"]


async def test_outputs_of_all_come_in_one_queue_with_the_replica_as_the_engine(fleet: Fleet) -> None:
    for replica in (fleet.b, fleet.a):
        fleet.client.received(replica, EngineCoreOutputs())  # ty: ignore[invalid-argument-type]
    assert [(await fleet.client.get_output_async()).engine_index for _ in range(2)] == [1, 0]
