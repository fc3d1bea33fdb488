"""openai_frontend/replicas/fleet_control.py, the metrics and the options: everything about all replicas."""

from http import HTTPStatus
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from openai_frontend.errors import EngineUnavailable, SeveralReplicas, TritonError
from openai_frontend.options import Options
from openai_frontend.replicas.fleet_control import FleetControl
from openai_frontend.replicas.replica_metrics import ReplicaGauges
from openai_frontend.replicas.replicas import Replicas
from tests.frontend.test_engine_info import ENGINE_INFO


class Member:
    def __init__(self, url: str, answer: dict[str, Any] | TritonError, unavailable_reason: str | None = None) -> None:
        self.url, self.answer, self.unavailable_reason = url, answer, unavailable_reason
        self.weight_version, self.num_running = "default", 2
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []

    async def control(
        self,
        operation: str,
        arguments: dict[str, Any],
        key: str | None,
        timeout_s: float = 0,
        payload: bytes | None = None,
    ) -> Any:
        self.asked.append((operation, arguments, key))
        if isinstance(self.answer, TritonError):
            raise self.answer
        return self.answer


def fleet(*members: Member) -> Any:
    return Replicas(members)  # ty: ignore[invalid-argument-type]


async def test_all_are_asked_with_the_key() -> None:
    a, b = Member("a", {"ok": True}), Member("b", {"ok": False})
    assert await FleetControl(fleet(a, b), "key").all("reset_prefix_cache", {"x": 1}) == [{"ok": True}, {"ok": False}]
    assert a.asked == b.asked == [("reset_prefix_cache", {"x": 1}, "key")]


async def test_the_first_error_is_raised_when_all_were_asked_and_names_its_replica() -> None:
    b = Member("b", TritonError("no", HTTPStatus.CONFLICT))
    c = Member("c", TritonError("neither", HTTPStatus.BAD_REQUEST))
    a = Member("a", {})
    with pytest.raises(TritonError, match=r"^b: no$") as caught:
        await FleetControl(fleet(a, b, c), None).all("sleep", {})
    assert caught.value.http_status == 409
    assert [len(member.asked) for member in (a, b, c)] == [1, 1, 1]


async def test_the_error_of_a_single_one_is_its_own() -> None:
    with pytest.raises(TritonError, match=r"^no$"):
        await FleetControl(fleet(Member("a", TritonError("no", HTTPStatus.CONFLICT))), None).all("sleep", {})


async def test_what_a_trainer_must_do_everywhere_is_refused_with_the_targets() -> None:
    a, b = Member("a:8001", {}), Member("b:8001", {})
    with pytest.raises(SeveralReplicas, match=r'WeightSync\(\["grpc://a:8001", "grpc://b:8001"\]\)') as caught:
        await FleetControl(fleet(a, b), "key").one("start_weight_update", {})
    assert caught.value.http_status == 422
    assert a.asked == b.asked == []
    assert await FleetControl(fleet(a), "key").one("start_weight_update", {}) == {}


@pytest.mark.parametrize("operation", ["sleep", "reset_prefix_cache", "describe"])
async def test_what_is_for_all_is_not_asked_of_one(operation: str) -> None:
    a = Member("a", {})
    with pytest.raises(ValueError, match=f"{operation} is for"):
        await FleetControl(fleet(a), "key").one(operation, {})
    assert a.asked == []


@pytest.mark.parametrize("operation", ["rollback", "status", "health"])
async def test_what_is_for_one_is_not_asked_of_all(operation: str) -> None:
    a = Member("a", {})
    with pytest.raises(ValueError, match=f"{operation} is for"):
        await FleetControl(fleet(a), "key").all(operation, {})
    assert a.asked == []


async def test_the_statuses_of_all() -> None:
    serving = {"state": "serving", "weight_version": "default", "world_size": 1}
    a, b = Member("a", serving), Member("b", EngineUnavailable("gone"), "Triton does not answer")
    assert await FleetControl(fleet(a, b), "key").statuses() == {
        "weight_version": "default",
        "replicas": [
            {"url": "a", **serving, "num_running": 2, "left_out": None},
            {
                "url": "b",
                "state": "unavailable",
                "weight_version": "default",
                "reason": "The engine is not available: gone",
                "num_running": 2,
                "left_out": "Triton does not answer",
            },
        ],
    }


def test_the_gauges() -> None:
    registry = CollectorRegistry()
    ReplicaGauges(registry).publish(fleet(Member("a", {}), Member("b", {}, "lost")))
    lines = generate_latest(registry).decode().splitlines()
    assert 'tritonlive_replica_running{replica="b"} 2.0' in lines
    assert [line for line in lines if line.startswith("tritonlive_replica_eligible{")] == [
        'tritonlive_replica_eligible{replica="a"} 1.0',
        'tritonlive_replica_eligible{replica="b"} 0.0',
    ]


def test_workers_learn_the_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRITON_URLS", "VLLM_ARGV", "NUM_WORKERS", "ENGINE_INFO"):
        monkeypatch.setenv(f"TRITONLIVE_FRONTEND_{name}", "")
    options = Options(["a:1", "[::1]:2"], ["--x"], 2, ENGINE_INFO)
    options.to_environment()
    assert Options.from_environment() == options
