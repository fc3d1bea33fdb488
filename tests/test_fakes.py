"""A call that works on a fake also works on the real class (vLLM's, Triton's binding's, or tritonlive's).

Each public method of a fake exists there, is a coroutine there too, and takes what the fake takes. A fake's own
controls, by which a test drives it, are listed.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TESTS = Path(__file__).parent
TYPINGS = TESTS / "typings" / "triton_python_backend_utils.pyi"
TRITON = "triton_python_backend_utils:"
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Fake:
    """A class of the tests, the classes it stands for (any of them may have a method), and its own controls."""

    path: str
    real: tuple[str, ...]
    controls: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.path.removeprefix("tests.")


def fake(path: str, *real: str, controls: str = "") -> Fake:
    return Fake(f"tests.{path}", real, frozenset(controls.split()))


ASYNC_LLM = "vllm.v1.engine.async_llm:AsyncLLM"
CORE_CLIENT = "vllm.v1.engine.core_client:AsyncMPClient"
INPUT_PROCESSOR = "vllm.v1.engine.input_processor:InputProcessor"
WORKER = "vllm.v1.worker.cpu_worker:CPUWorker"
MODEL_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
COMMUNICATOR = "vllm.distributed.device_communicators.pynccl:PyNcclCommunicator"
ENGINE = "tritonlive.backend.engine:Engine"
FAKES = (
    # vLLM
    fake("backend.engine:Llm", ASYNC_LLM),
    fake("backend.engine:Core", CORE_CLIENT),
    fake("property.engine:Llm", ASYNC_LLM, CORE_CLIENT),
    fake("property.ranks:ModelRunner", MODEL_RUNNER),
    fake("sync.worker.test_trl_legacy_worker:StoreCommunicator", COMMUNICATOR),
    fake("sync.push.test_vllm_trainer:Communicator", COMMUNICATOR),
    # Triton's binding
    fake("backend.test_responses:TritonSender", f"{TRITON}ResponseSender"),
    fake("backend.test_metrics:Metric", f"{TRITON}Metric"),
    fake("triton_stand_in:Request", f"{TRITON}InferenceRequest"),
    fake("triton_stand_in:InputTensor", f"{TRITON}Tensor"),
    fake("backend.unbatched.test_engine_link:TritonRequest", f"{TRITON}InferenceRequest"),
    fake("backend.unbatched.test_engine_link:TritonSender", f"{TRITON}ResponseSender"),
    # Ours
    fake("backend.compiler:FakeCompiler", "tritonlive.backend.grammars.compiler_client:CompilerClient"),
    fake("backend.engine:FakeEngine", ENGINE, controls="start"),
    fake("backend.test_engine:FakeEngine", ENGINE),
    fake(
        "backend.generation.test_token_level:FakeEngine",
        *(ENGINE, ASYNC_LLM, CORE_CLIENT, INPUT_PROCESSOR),
        controls="put",
    ),
    fake("property.engine:StandInEngine", ENGINE, controls="generate in_process start stop take_fault"),
    fake("frontend.replicas.test_replica_channel:Connection", "openai_frontend.replicas.connection:TritonConnection"),
    fake(
        "frontend.replicas.test_replica:FakeConnection",
        "openai_frontend.replicas.connection:TritonConnection",
        controls="lose",
    ),
    fake("frontend.engine.test_core_client:FakeReplica", "openai_frontend.replicas.replica:Replica", controls="fail"),
    fake("frontend.rust.test_bridge:FakeReplica", "openai_frontend.replicas.replica:Replica", controls="fail step"),
    fake("frontend.rust.test_rust_front_end:FakeBridge", "openai_frontend.rust.bridge:Bridge"),
    fake("frontend.replicas.test_fleet_control:Member", "openai_frontend.replicas.replica:Replica"),
    fake("frontend.routes.test_trl_legacy:FakeEngine", "openai_frontend.engine.triton_engine:TritonEngineClient"),
    fake(
        "frontend.routes.test_trl_legacy_weights:FakeEngine", "openai_frontend.engine.triton_engine:TritonEngineClient"
    ),
    fake("frontend.test_adapters:Engine", "openai_frontend.engine.triton_engine:TritonEngineClient"),
    fake("frontend.test_weight_version:Engine", "openai_frontend.engine.triton_engine:TritonEngineClient"),
    fake("sync.push.test_heartbeat:Client", "sync.control.client:ControlClient", controls="gaps"),
    fake(
        "sync.push.test_vllm_trainer:NotifyingFleet",
        *("sync.push.fleet_group:WorkerCall", "sync.push.fleet_update:FleetUpdate"),
    ),
    fake("sync.trl.test_rollouts:FakeRollouts", "sync.rollouts.rollouts:Rollouts"),
    fake("bench.test_array_loads:FakeRollouts", "sync.rollouts.rollouts:Rollouts"),
    fake("backend.generation.test_relay:Writer", "tritonlive.backend.responses:ResponseWriter", controls="announced"),
    fake("backend.generation.test_relay:Sender", "tritonlive.backend.responses:Sender"),
    fake("frontend.replicas.test_replicas:Stub", "openai_frontend.replicas.replica:Replica"),
    fake("bench.stand_ins:LocalServer", "bench.systems:TritonLive"),
    fake("bench.test_loads:Offline", "bench.helpers:Offline"),
    fake("bench.test_push:Replica", "bench.systems:TritonLive"),
    fake("bench.test_push:Systems", "bench.systems:Systems"),
    fake("bench.test_push:Trainer", "bench.trainer:Trainer"),
    fake("bench.test_start:Systems", "bench.systems:Systems"),
    fake("bench.test_trainer:Sync", "sync:WeightSync"),
)
# Servers behind a socket: a client's real requests reach them.
SERVERS = {
    "frontend.replicas.test_replica:FakeServer",
    "sync.control.test_grpc_control:FakeTriton",
    "sync.rollouts.test_rollouts:FakeTriton",
    "sync.trl.test_trl:FakeServer",
}


@pytest.fixture(scope="module", autouse=True)
def _triton() -> None:
    """Modules of the model import Triton's."""
    importlib.import_module("tests.triton_stand_in").install()


def resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def triton_methods(name: str) -> dict[str, Callable[..., Any]]:
    """Signatures from tests/typings: Triton's own classes are compiled into its process."""
    (found,) = [
        each for each in ast.parse(TYPINGS.read_text()).body if isinstance(each, ast.ClassDef) and each.name == name
    ]
    methods: dict[str, Any] = {}
    for each in found.body:
        if isinstance(each, ast.FunctionDef):
            each.returns, each.decorator_list = None, []
            for argument in (*each.args.args, *each.args.kwonlyargs):
                argument.annotation = None
            exec(compile(ast.Module([each], []), str(TYPINGS), "exec"), {}, methods)  # noqa: S102 - our own file
    return methods


def classes_called_fake() -> set[str]:
    """module:class, below tests."""
    found = set()
    for path in TESTS.rglob("*.py"):
        module = ".".join(path.relative_to(TESTS).with_suffix("").parts)
        names = [each.name for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.ClassDef)]
        found |= {f"{module}:{name}" for name in names if name.startswith("Fake") and name != "Fake"}
    return found


def methods_of(path: str) -> Any:
    """An object with a class's methods as its attributes."""
    if path.startswith(TRITON):
        return SimpleNamespace(**triton_methods(path.removeprefix(TRITON)))
    return resolve(path)


def public_methods(kind: type) -> dict[str, Any]:
    """Methods that the fake's class itself defines, without those of its bases."""
    return {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and not name.startswith("_")}


def kind_of_call(method: Any) -> str:
    return "coroutine" if inspect.iscoroutinefunction(method) else "plain"


def mismatches(ours: Callable[..., Any], theirs: Callable[..., Any]) -> list[str]:
    """Calls that `ours` accepts and `theirs` does not."""
    taken, offered = (list(inspect.signature(each).parameters.values())[1:] for each in (ours, theirs))
    by_name = {each.name: each for each in offered}
    takes_names = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in offered)
    takes_more = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in offered)
    positional = [each for each in offered if each.kind in POSITIONAL]
    found = []
    for number, each in enumerate(taken):
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            continue  # passes on what it gets
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            found += [] if takes_more else [f"*{each.name}"]
            continue
        name = each.name.removeprefix("_")  # of an argument that the fake does not read
        is_keyword = each.kind is inspect.Parameter.KEYWORD_ONLY
        if name not in by_name and not takes_names and not (takes_more and not is_keyword):
            found.append(f"no argument {name}")
        elif name in by_name and not is_keyword and by_name[name].kind is inspect.Parameter.KEYWORD_ONLY:
            found.append(f"{name} is given by name only")
        elif name in by_name and not is_keyword and number < len(positional) and positional[number].name != name:
            found.append(f"argument {number} is {positional[number].name}, not {name}")
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken)
    named = {each.name.removeprefix("_"): each for each in taken}
    for each in offered:
        if each.default is inspect.Parameter.empty and each.kind in (*POSITIONAL, inspect.Parameter.KEYWORD_ONLY):
            ours_of_it = named.get(each.name)
            if ours_of_it is None and not takes_any:
                found.append(f"{each.name} is required")
            elif ours_of_it is not None and ours_of_it.default is not inspect.Parameter.empty:
                found.append(f"{each.name} has no default")
    return found


@pytest.mark.parametrize("pair", FAKES, ids=str)
def test_a_fake_takes_no_call_that_the_real_one_does_not(pair: Fake) -> None:
    reals = [methods_of(path) for path in pair.real]
    methods = public_methods(resolve(pair.path))
    assert pair.controls <= methods.keys(), "a control that is gone"
    found = []
    for name, method in methods.items():
        if name in pair.controls:
            continue
        theirs = next((getattr(real, name) for real in reals if hasattr(real, name)), None)
        if theirs is None:
            found.append(f"{name}: not a method of {' or '.join(pair.real)}")
            continue
        found += [f"{name}: {mismatch}" for mismatch in mismatches(method, theirs)]
        if kind_of_call(method) != kind_of_call(theirs):
            found.append(f"{name}: {kind_of_call(theirs)} there, {kind_of_call(method)} here")
    assert found == []


def test_every_class_called_fake_is_compared() -> None:
    assert classes_called_fake() - {str(pair) for pair in FAKES} == SERVERS


class Real:
    def method(self, a: int, *, b: int = 0) -> None: ...
    async def wait(self) -> None: ...


@pytest.mark.parametrize(
    ("ours", "mismatch"),
    [
        (lambda self, a: None, []),
        (lambda self, a, *, b=1: None, []),
        (lambda self, _a: None, []),
        (lambda self, **arguments: None, []),
        (lambda self: None, ["a is required"]),
        (lambda self, a=1: None, ["a has no default"]),
        (lambda self, a, c: None, ["no argument c"]),
        (lambda self, a, b: None, ["b is given by name only"]),
        (lambda self, a, *more: None, ["*more"]),
    ],
)
def test_what_differs_is_named(ours: Callable[..., Any], mismatch: list[str]) -> None:
    assert mismatches(ours, Real.method) == mismatch


def test_tritons_signatures_are_read() -> None:
    assert list(inspect.signature(triton_methods("ResponseSender")["send"]).parameters) == ["self", "response", "flags"]
