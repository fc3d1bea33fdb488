"""tritonlive/backend/control.py: a real Control over a real state machine; the engine remembers its calls."""

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
import numpy as np
import pytest

from tests.backend.engine import FakeEngine, Llm
from tests.triton_stand_in import Request, tensor
from tritonlive.backend import tensors
from tritonlive.backend.control import Control, bind_handlers
from tritonlive.backend.settings import Settings
from tritonlive.backend.weights.history import InFlight
from tritonlive.backend.weights.weights import Weights
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operation import Lease
from tritonlive.wire.operations import OPERATIONS, PUBLIC_OPERATIONS

KEY = "control-key"
HOLDER = "trainer-1"
INIT = {"holder": HOLDER, "lease_s": 30.0}


class Adapters:
    """Fake of the methods that operations on adapters call; anything else fails."""

    def __init__(self) -> None:
        self.staged: list[tuple[Any, ...]] = []

    async def stage(self, *arguments: Any) -> dict[str, Any]:
        self.staged.append(arguments)
        return {"name": "a", "version": "v1", "bytes": 3, "tensors": 2, "is_changed": True}

    async def activate(self, name: str, version: str) -> dict[str, Any]:
        return {"name": name, "version": version, "bytes": 3, "tensors": 2}

    async def discard(self, name: str, version: str) -> dict[str, Any]:
        return {}

    async def remove(self, name: str) -> dict[str, Any]:
        return {"name": name, "version": "v1", "bytes": 3, "tensors": 2}

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": "a", "version": "v1", "bytes": 3, "tensors": 2, "state": "serving", "requests": 0}]


class ControlLlm(Llm):
    """The part of AsyncLLM that operations need. Any other call fails."""

    def __init__(self, backend: str | None, folder: Path, num_ranks: int = 1) -> None:
        super().__init__(backend, folder, num_ranks)
        config, model = self.vllm_config, self.model_config
        config.model_config = model
        model.served_model_name, model.dtype, model.max_model_len = "m", "torch.float32", 64
        config.lora_config = SimpleNamespace()
        config.cache_config = SimpleNamespace(num_gpu_blocks=4, block_size=16, kv_cache_size_tokens=64)
        config.parallel_config = SimpleNamespace(world_size=1, world_size_across_dp=1)
        self.loras: list[Any] = []

    @property
    def is_paused(self) -> Any:
        """A method of AsyncLLM, which the base class sets as an attribute."""

        async def is_paused() -> bool:
            return self._is_paused

        return is_paused

    @is_paused.setter
    def is_paused(self, value: bool) -> None:
        self._is_paused = value

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    async def is_sleeping(self) -> bool:
        return False

    async def compute_weight_checksums(self) -> list[dict[str, str]]:
        return [{"w": "00"}]

    async def add_lora(self, request: Any) -> bool:
        self.loras.append(request)
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        return lora_id == 1

    async def list_loras(self) -> set[int]:
        return {2, 1}


class ControlEngine(FakeEngine):
    """The model's Engine with its settings."""

    def __init__(self, folder: Path, control_key: str | None = KEY) -> None:
        super().__init__("gloo", folder)
        self._make = lambda: ControlLlm("gloo", folder)
        self.llm = self._make()
        self.settings = Settings([], control_key)
        self.argv, self.started_at, self.num_restarts = ["--model", "m"], 1.5, 0
        self.arguments = SimpleNamespace(model="m")
        self.supported_tasks = ("generate",)

    @property
    def control_llm(self) -> ControlLlm:
        assert isinstance(self.llm, ControlLlm)
        return self.llm


class Setting:
    """A Control, and how tests call it."""

    def __init__(self, folder: Path, control_key: str | None = KEY) -> None:
        self.errors = tensors
        self.engine: Any = ControlEngine(folder, control_key)
        self.adapters: Any = Adapters()
        self.num_flushes = 0
        engine: Any = self.engine
        adapters: Any = self.adapters
        self.weights = Weights(engine, lambda _version: None)
        in_flight = InFlight()
        self.control = Control(engine, self.weights, adapters, in_flight, self._flush)

    async def run(
        self, operation: str, /, *, key: str | None = KEY, payload: bytes | None = None, **arguments: Any
    ) -> Any:
        return await self.run_text(operation, json.dumps(arguments), key, payload)

    async def run_text(self, name: str, arguments: str, key: str | None = KEY, payload: bytes | None = None) -> Any:
        request = Request(control_operation=tensor(name), control_arguments=tensor(arguments))
        if key is not None:
            request["control_key"] = tensor(key)
        if payload is not None:
            request["control_payload"] = np.frombuffer(payload, np.uint8)[None]
        return json.loads(await self.control.run(request))

    async def refusal(self, operation: str, /, **keywords: Any) -> tuple[ErrorCode, str]:
        with pytest.raises(self.errors.RequestError) as caught:
            await self.run(operation, **keywords)
        return caught.value.code, str(caught.value)

    async def connect(self) -> None:
        await self.run("init_weight_transfer_engine", init_info=INIT)

    def _flush(self) -> None:
        self.num_flushes += 1


@pytest.fixture
async def setting(tmp_path: Path) -> Setting:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    made = Setting(tmp_path)
    await made.engine.start()
    return made


# ---- the key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x"])
@pytest.mark.parametrize("name", [*sorted(OPERATIONS.keys() - PUBLIC_OPERATIONS), "no_such_operation"])
async def test_all_but_the_public_operations_need_the_key(setting: Setting, name: str, key: str | None) -> None:
    assert await setting.refusal(name, key=key) == (ErrorCode.REFUSED, "control_key: missing or wrong")
    assert setting.engine.llm.calls == []


@pytest.mark.parametrize("name", sorted(PUBLIC_OPERATIONS))
async def test_public_operations_need_none(setting: Setting, name: str) -> None:
    await setting.run(name, key=None)


async def test_without_a_key_on_the_server_control_is_off(tmp_path: Path) -> None:
    setting = Setting(tmp_path, control_key=None)
    code, message = await setting.refusal("status", key="")
    assert code is ErrorCode.REFUSED
    assert message == "control_key: control is off: the server was started without TRITONLIVE_CONTROL_KEY"
    assert await setting.run("health", key=None) == {"healthy": True}


# ---- what a request holds -------------------------------------------------------------------------------------------


async def test_an_unknown_operation_is_named(setting: Setting) -> None:
    code, message = await setting.refusal("no_such_operation")
    assert code is ErrorCode.INVALID
    assert message.startswith("control_operation: unknown 'no_such_operation'; there are ")
    assert all(name in message for name in OPERATIONS)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("start_weight_update", {"update": "u"}, "of start_weight_update: Object contains unknown field `update`"),
        ("fence", {}, "of fence: Object missing required field `reason`"),
        ("fence", {"reason": 1}, "of fence: Expected `str`, got `int` - at `$.reason`"),
        ("pause_generation", {"mode": "hold"}, "of pause_generation: Invalid enum value 'hold' - at `$.mode`"),
        ("adapters", {"name": "a"}, "of adapters: Object contains unknown field `name`"),
        ("status", {"verbose": True}, "of status: Object contains unknown field `verbose`"),
    ],
)
async def test_bad_arguments_are_named(setting: Setting, name: str, arguments: dict[str, Any], message: str) -> None:
    code, found = await setting.refusal(name, **arguments)
    assert (code, found) == (ErrorCode.INVALID, f"control_arguments: {message}")


@pytest.mark.parametrize("text", ["{", "[]", "3", '"x"'])
async def test_arguments_that_are_no_object(setting: Setting, text: str) -> None:
    with pytest.raises(setting.errors.BadTensor, match=r"^control_arguments: is"):
        await setting.run_text("status", text)


async def test_a_payload_is_no_argument(setting: Setting) -> None:
    arguments = {"name": "a", "version": "v1", "config": {}, "payload": "x"}
    with pytest.raises(setting.errors.BadTensor, match="unknown field `payload`"):
        await setting.run_text("stage_adapter", json.dumps(arguments))


async def test_a_payload_only_where_one_belongs(setting: Setting) -> None:
    adapter: dict[str, Any] = {"name": "a", "version": "v1", "config": {"r": 8}}
    await setting.run("stage_adapter", payload=b"\x00\xff", **adapter)
    assert setting.adapters.staged == [("a", "v1", {"r": 8}, None, b"\x00\xff")]
    assert await setting.refusal("stage_adapter", **adapter) == (
        ErrorCode.INVALID,
        "control_payload: stage_adapter needs it",
    )
    assert await setting.refusal("status", payload=b"x") == (ErrorCode.INVALID, "control_payload: status takes none")


async def test_a_pushed_adapters_id_is_not_for_vllms_own(setting: Setting) -> None:
    lora: dict[str, Any] = {"lora_name": "a", "lora_path": "/a"}
    assert await setting.run("add_lora", lora_int_id=1, **lora) == {"added": True}
    code, message = await setting.refusal("add_lora", lora_int_id=2**30, **lora)
    assert (code, message) == (
        ErrorCode.INVALID,
        "control_arguments: of add_lora: 'a' was pushed; remove_adapter makes room for it",
    )
    assert "Expected `int` >= 1 - at `$.lora_int_id`" in (await setting.refusal("add_lora", lora_int_id=0, **lora))[1]
    empty = (await setting.refusal("add_lora", lora_int_id=1, lora_name="a", lora_path=""))[1]
    assert "Expected `str` of length >= 1 - at `$.lora_path`" in empty
    assert len(setting.engine.control_llm.loras) == 1


# ---- the lease ------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, dict[str, Any]] = {
    "update_weights": {"update_info": {}},
    "fence": {"reason": "test"},
}
LEASED = sorted(name for name, operation in OPERATIONS.items() if operation.lease is not Lease.ANYONE)


@pytest.mark.parametrize("holder", [None, "another"])
@pytest.mark.parametrize("name", LEASED)
async def test_only_the_holder_may_change_weights(setting: Setting, name: str, holder: str | None) -> None:
    await setting.connect()
    before = list(setting.engine.llm.calls)
    named = {"holder": holder} if holder is not None else {}
    code, message = await setting.refusal(name, **ARGUMENTS.get(name, {}), **named)
    assert code is ErrorCode.CONFLICT
    assert f"trainer {HOLDER} is connected" in message
    assert setting.engine.llm.calls == before


async def test_a_forced_abort_needs_no_lease(setting: Setting) -> None:
    await setting.connect()
    await setting.run("start_weight_update", holder=HOLDER)
    outcome = await setting.run("abort_weight_update", force=True, reason="a test")
    assert (outcome["outcome"], outcome["state"], outcome["is_live"]) == ("aborted", "serving", False)
    assert (await setting.run("status"))["lease"] is None


async def test_a_leased_call_renews_the_lease_also_when_it_fails(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.connect()
    renewals: list[None] = []
    monkeypatch.setattr(setting.weights.lease, "renew", lambda: renewals.append(None))
    await setting.run("renew_lease", holder=HOLDER)
    assert len(renewals) == 2, "before the call and after it"
    await setting.refusal("finish_weight_update", holder=HOLDER)
    assert len(renewals) == 4
    await setting.run("status", holder=HOLDER)
    assert len(renewals) == 4, "a look is no sign of life"


async def test_renewing_a_lease_that_nobody_holds_is_a_conflict(setting: Setting) -> None:
    assert (await setting.refusal("renew_lease"))[0] is ErrorCode.CONFLICT


# ---- every operation ------------------------------------------------------------------------------------------------


class Recorded:
    """Runs operations, and checks each result against the table's type."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.names: set[str] = set()

    async def run(self, operation: str, /, **arguments: Any) -> Any:
        result = await self._setting.run(operation, **arguments)
        check_result(operation, result, OPERATIONS[operation].result)
        self.names.add(operation)
        return result


def check_result(where: str, value: Any, kind: Any) -> None:
    """Raises unless `value` has exactly the fields of `kind`, each of its type."""
    msgspec.convert(value, kind)
    if is_typeddict(kind):
        assert kind.__required_keys__ <= value.keys() <= get_type_hints(kind).keys(), where
        for name, hint in get_type_hints(kind).items():
            if name in value:
                check_result(f"{where}.{name}", value[name], hint)
    elif isinstance(value, list):
        (part,) = get_args(kind) if get_origin(kind) is list else (Any,)
        for each in value:
            if is_typeddict(part):
                check_result(where, each, part)
    elif isinstance(value, dict):
        for part in get_args(kind):
            if is_typeddict(part):
                check_result(where, value, part)


async def test_every_operation_answers_as_the_table_says(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(setting)
    run = recorded.run

    async def parameters() -> dict[str, Any]:
        tensor = {"name": "w", "dtype": "bfloat16", "shape": [2], "loaded": True}
        return {"parameters": [tensor], "tied": [], "untraced": None, "load_format": "auto", "quantization": None}

    async def logprobs(_engine: Any, prompts: list[list[int]]) -> list[list[float | None]]:
        return [[-0.5, None] for _ in prompts]

    monkeypatch.setattr(setting.weights, "parameters", parameters)
    monkeypatch.setattr("tritonlive.backend.engine_control.prompt_logprobs", logprobs)

    assert (await run("describe", key=None))["engine_argv"] == ["--model", "m"]
    await run("health", key=None)
    await run("flush_generations", key=None)
    assert setting.num_flushes == 1
    assert (await run("status"))["state"] == "serving"
    assert (await run("score", prompts=[[1, 2, 3]]))["logprobs"] == [[-0.5, None]]
    await run("parameters")

    await run("pause_generation", mode="keep")
    assert (await run("status"))["state"] == "paused"
    assert await run("is_paused") == {"is_paused": True}
    await run("resume_generation")
    assert await run("is_paused") == {"is_paused": False}
    for name in ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache", "is_sleeping"):
        await run(name)

    assert (await run("reserve_lease", init_info=INIT))["lease"]["holder"] == HOLDER
    await run("init_weight_transfer_engine", init_info=INIT)
    assert (await run("renew_lease", holder=HOLDER))["lease"]["seconds"] == 30
    await run("start_weight_update", holder=HOLDER, update_id="u1")
    assert (await run("status"))["state"] == "updating"
    await run("update_weights", holder=HOLDER, update_info={"names": []}, update_id="u1")
    assert (await run("prepare_weight_update", holder=HOLDER))["digest"] == "d"
    assert (await run("finish_weight_update", holder=HOLDER, weight_version="v1"))["weight_version"] == "v1"
    assert await run("get_weight_version") == {"weight_version": "v1"}
    assert (await run("abort_weight_update", holder=HOLDER, update_id="u1"))["is_live"]
    assert (await run("timeline"))["updates"][-1]["update_id"] == "u1"
    assert (await run("rollback", holder=HOLDER, to="default"))["weight_version"] == "default"
    assert (await run("reload", holder=HOLDER))["weight_version"] == "default"
    assert (await run("fence", holder=HOLDER, reason="a test"))["state"] == "fenced"
    assert (await setting.refusal("health"))[0] is ErrorCode.UNAVAILABLE
    await run("reload", holder=HOLDER)
    await run("shutdown_weight_transfer_engine", holder=HOLDER)
    await run("update_weight_version", new_version="v7")
    await run("compute_weight_checksums")

    await run("add_lora", lora_name="a", lora_int_id=1, lora_path="/a")
    await run("remove_lora", lora_id=1)
    assert await run("list_loras") == {"loras": [1, 2]}
    named = {"name": "a", "version": "v1"}
    await run("stage_adapter", config={}, payload=b"x", **named)
    await run("activate_adapter", **named)
    await run("discard_adapter", **named)
    await run("remove_adapter", name="a")
    await run("adapters")

    await run("sleep", level=1)
    assert await run("wake_up") == {"fully_awake": True}
    await run("reset_weights")
    assert (await run("status"))["state"] == "dirty"
    setting.engine.kill()
    assert (await run("status"))["state"] == "restarting"
    assert recorded.names == set(OPERATIONS)


# ---- handlers -------------------------------------------------------------------------------------------------------


def handlers(names: Collection[str]) -> Any:
    async def handle(self: Any, arguments: Any) -> dict[str, Any]:
        return {}

    return type("Handlers", (), dict.fromkeys(names, handle))()


def test_every_operation_has_one_handler() -> None:
    bind = bind_handlers
    assert set(bind(handlers(OPERATIONS))) == set(OPERATIONS)
    assert set(bind(handlers([*OPERATIONS, "_step"]))) == set(OPERATIONS), "steps are no handlers"
    with pytest.raises(TypeError, match=r"operations without a handler: fence, rollback$"):
        bind(handlers(OPERATIONS.keys() - {"rollback", "fence"}))
    with pytest.raises(TypeError, match=r"Handlers\.fence_all handles no operation"):
        bind(handlers([*OPERATIONS, "fence_all"]))
    with pytest.raises(TypeError, match=r"Handlers\.fence: the operation has two handlers"):
        bind(handlers(OPERATIONS), handlers(["fence"]))
