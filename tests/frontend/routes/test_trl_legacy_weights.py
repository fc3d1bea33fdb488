"""The weight routes of TRL up to 1.10, over a fake replica."""

import asyncio
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from openai_frontend.engine_errors import answer_triton_error
from openai_frontend.errors import TritonError
from openai_frontend.routes import trl_legacy, trl_legacy_weights
from openai_frontend.routes.trl_legacy_weights import BACKEND
from tritonlive.wire.versions import next_step

INIT = {"host": "0.0.0.0", "port": 51216, "world_size": 3, "client_device_uuid": "gpu-1"}
TENSOR = {"name": "a.weight", "dtype": "torch.bfloat16", "shape": [2, 3]}
UPDATE_INFO = {"names": ["a.weight"], "dtype_names": ["bfloat16"], "shapes": [[2, 3]]}


class FakeEngine:
    """A replica with two workers. Their operations with the trainer last until `trainer` is set."""

    def __init__(self, backend: str | None = BACKEND) -> None:
        self.vllm_config = SimpleNamespace(weight_transfer_config=SimpleNamespace(backend=backend) if backend else None)
        self.trainer = asyncio.Event()
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, TritonError] = {}
        self.state, self.reason, self.version = "serving", None, "default"
        self.lease: dict[str, Any] | None = None
        self.last_update: dict[str, Any] | None = None

    def get_world_size(self, *, include_dp: bool) -> int:
        return 2 if include_dp else 1

    async def control(self, operation: str, **arguments: Any) -> None:
        self.calls.append((operation, arguments))
        if operation in ("init_weight_transfer_engine", "update_weights") and operation not in self.failures:
            await self.trainer.wait()
        if operation == "init_weight_transfer_engine":
            self._fail_if_told(operation)
            self.lease = {"holder": "GPU gpu-1"}
        try:
            self._fail_if_told(operation)
        except TritonError as error:
            self.state, self.reason, self.lease = "dirty", str(error), None
            self.last_update = {"outcome": "failed"}
            raise
        if operation == "abort_weight_update" and self.state == "updating":
            self.state, self.reason, self.lease = "dirty", arguments["reason"], None

    async def start_weight_update(self) -> None:
        await self.control("start_weight_update")
        self.state = "updating"

    async def commit_weight_update(self, version: str) -> None:
        await self.control("finish_weight_update", version=version)
        self.state, self.version, self.last_update = "serving", version, {"outcome": "committed"}

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.control("shutdown_weight_transfer_engine")

    async def reset_prefix_cache(self) -> bool:
        await self.control("reset_prefix_cache")
        return True

    async def get_replica_status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "reason": self.reason,
            "weight_version": self.version,
            "lease": self.lease,
            "last_update": self.last_update,
        }

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.calls]

    def _fail_if_told(self, operation: str) -> None:
        if operation in self.failures:
            raise self.failures[operation]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_legacy_weights, "REFUSAL_S", 0.05)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


Post = Callable[..., Any]


@pytest.fixture
async def post(engine: FakeEngine) -> AsyncIterator[Post]:
    """await post(path, body) → (status, message)"""
    app = FastAPI()
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.engine_client = engine
    init_exception_handler(app)
    app.exception_handler(TritonError)(answer_triton_error)
    assert trl_legacy.attach(app) == {
        *("/get_world_size/", "/init_communicator/", "/update_named_param/"),
        *("/reset_prefix_cache/", "/close_communicator/"),
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def post(path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
            answer = await client.post(path, json=body, timeout=5)
            content = answer.json()
            return answer.status_code, content["message"] if "message" in content else content["error"]["message"]

        yield post


async def connect(engine: FakeEngine, post: Post) -> None:
    assert (await post("/init_communicator/", INIT))[0] == 200
    await let_trainer_come(engine)


async def let_trainer_come(engine: FakeEngine) -> None:
    """Let the trainer do its part of the operation, as after the answer."""
    engine.trainer.set()
    await asyncio.sleep(0.01)
    engine.trainer.clear()


async def test_a_whole_update(engine: FakeEngine, post: Post) -> None:
    assert (await post("/init_communicator/", INIT))[0] == 200
    assert engine.calls == [("init_weight_transfer_engine", {"init_info": INIT})]
    assert engine.lease is None, "answered before the trainer could join"
    await let_trainer_come(engine)
    for _ in range(2):
        assert (await post("/update_named_param/", TENSOR))[0] == 200
        await let_trainer_come(engine)
    status, message = await post("/reset_prefix_cache/")
    assert (status, message) == (200, "Request received, resetting prefix cache status: True")
    assert engine.calls[1:] == [
        ("start_weight_update", {}),
        ("update_weights", {"update_info": UPDATE_INFO}),
        ("update_weights", {"update_info": UPDATE_INFO}),
        ("finish_weight_update", {"version": "step-0"}),
    ]
    assert (await post("/close_communicator/"))[0] == 200


async def test_every_update_has_a_version_of_its_own(engine: FakeEngine, post: Post) -> None:
    await connect(engine, post)
    versions = []
    for _ in range(3):
        await post("/update_named_param/", TENSOR)
        await let_trainer_come(engine)
        await post("/reset_prefix_cache/")
        versions.append(engine.version)
    assert versions == ["step-0", "step-1", "step-2"]
    assert [next_step(version) for version in ("default", "step-009", "v41")] == ["step-0", "step-10", "step-42"]


async def test_without_an_update_the_cache_is_reset(engine: FakeEngine, post: Post) -> None:
    assert (await post("/reset_prefix_cache/"))[0] == 200
    await connect(engine, post)
    assert (await post("/reset_prefix_cache/"))[0] == 200
    assert engine.operations == ["reset_prefix_cache", "init_weight_transfer_engine", "reset_prefix_cache"]


async def test_a_second_trainer_hears_that_there_is_one(engine: FakeEngine, post: Post) -> None:
    refusal = TritonError("weights: trainer GPU gpu-2 is connected", HTTPStatus.CONFLICT)
    engine.failures["init_weight_transfer_engine"] = refusal
    assert await post("/init_communicator/", INIT) == (409, str(refusal))


async def test_an_update_without_a_trainer_is_refused(engine: FakeEngine, post: Post) -> None:
    refusal = TritonError("start_weight_update: no trainer is connected", HTTPStatus.CONFLICT)
    engine.failures["start_weight_update"] = refusal
    assert await post("/update_named_param/", TENSOR) == (409, str(refusal))
    assert engine.operations == ["start_weight_update"]


@pytest.mark.parametrize(("path", "body"), [("/update_named_param/", TENSOR), ("/reset_prefix_cache/", None)])
async def test_a_transfer_that_failed_is_told_at_the_next_call(
    engine: FakeEngine, post: Post, path: str, body: dict[str, Any] | None
) -> None:
    await connect(engine, post)
    engine.failures["update_weights"] = TritonError("no such tensor", HTTPStatus.BAD_REQUEST)
    assert (await post("/update_named_param/", TENSOR))[0] == 200
    status, message = await post(path, body)
    assert status == 409
    assert "the last weight update failed: no such tensor; call init_communicator" in message
    assert engine.operations.count("update_weights") == 1
    assert "finish_weight_update" not in engine.operations

    engine.failures.clear()
    await connect(engine, post)
    assert (await post("/update_named_param/", TENSOR))[0] == 200
    assert engine.state == "updating"


async def test_a_commit_that_fails_is_told(engine: FakeEngine, post: Post) -> None:
    await connect(engine, post)
    await post("/update_named_param/", TENSOR)
    await let_trainer_come(engine)
    engine.failures["finish_weight_update"] = TritonError("a layer got no tensor", HTTPStatus.BAD_REQUEST)
    assert await post("/reset_prefix_cache/") == (400, "a layer got no tensor")


async def test_closing_gives_up_what_is_not_finished(engine: FakeEngine, post: Post) -> None:
    await connect(engine, post)
    await post("/update_named_param/", TENSOR)
    await let_trainer_come(engine)
    assert (await post("/close_communicator/"))[0] == 200
    assert engine.operations[-2:] == ["abort_weight_update", "shutdown_weight_transfer_engine"]
    assert engine.state == "dirty"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/init_communicator/", INIT | {"world_size": 2}, 422, "world_size: 2; with the 2 workers here it must be 3"),
        ("/init_communicator/", INIT | {"port": 0}, 400, "port"),
        ("/update_named_param/", TENSOR | {"dtype": "torch.bfloat17"}, 422, "dtype: 'torch.bfloat17' of a.weight"),
        ("/update_named_param/", TENSOR | {"dtype": "torch.complex64"}, 422, "dtype: 'torch.complex64' of a.weight"),
        ("/update_named_param/", TENSOR | {"dtype": "torch.nn"}, 422, "dtype: 'torch.nn' of a.weight"),
        ("/update_named_param/", TENSOR | {"shape": [2, -1]}, 400, "shape"),
    ],
)
async def test_a_bad_request_names_its_fault(
    engine: FakeEngine, post: Post, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    found, text = await post(path, body)
    assert found == status
    assert message in text
    assert engine.calls == []


@pytest.mark.parametrize("backend", [None, "gloo", "nccl"])
@pytest.mark.parametrize(("path", "body"), [("/init_communicator/", INIT), ("/update_named_param/", TENSOR)])
async def test_another_backend_is_refused_with_how_to_start(
    engine: FakeEngine, post: Post, backend: str | None, path: str, body: dict[str, Any]
) -> None:
    engine.vllm_config = FakeEngine(backend).vllm_config
    status, message = await post(path, body)
    assert status == 422, "a state error: TRL repeats 500, 502 and 503"
    assert """--weight-transfer-config '{"backend": "nccl_trl_legacy"}'""" in message
    assert (await post("/reset_prefix_cache/"))[0] == (await post("/close_communicator/"))[0] == 200
    assert engine.operations == ["reset_prefix_cache"]
