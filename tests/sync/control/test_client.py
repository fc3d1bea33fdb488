"""sync/control/client.py: the methods that are made from the table of operations."""

import inspect
from typing import Any

import msgspec
import pytest
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

from sync.control.client import Call, ControlClient
from sync.control.control_errors import control_error, triton_error
from sync.control.target import Target
from sync.errors import ConflictError, ControlError, InvalidError, RefusedError, UnavailableError
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operations import OPERATIONS

UNWRAPPED = {"adapters", "init_weight_transfer_engine", "renew_lease", "start_weight_update", "update_weights"}


class Recorder(ControlClient):
    """Keeps its calls."""

    def __init__(self) -> None:
        super().__init__(Target.parse("http://here:1"), timeout=7)
        self.calls: list[Call] = []

    def send(self, call: Call) -> dict[str, Any]:
        self.calls.append(call)
        return {"name": call.operation.name, "adapters": [], "weight_version": "v1"}

    def close(self) -> None: ...

    @property
    def last(self) -> tuple[str, dict[str, Any], float, bytes | None]:
        call = self.calls[-1]
        return call.operation.name, call.arguments, call.timeout, call.payload


@pytest.fixture
def client() -> Recorder:
    return Recorder()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_a_method(client: Recorder, name: str) -> None:
    operation = OPERATIONS[name]
    method = getattr(client, name)
    assert method.__name__ == name
    assert method.__doc__
    values: dict[str, Any] = {field: object() for field in operation.positional}
    payload = (b"payload",) if operation.has_payload else ()
    answer = method(*values.values(), *payload)
    assert client.calls[-1].operation is operation
    sent = client.calls[-1].arguments
    assert {field: sent[field] for field in values} == values
    assert client.calls[-1].timeout == 7
    assert client.calls[-1].payload == (b"payload" if payload else None)
    if name not in UNWRAPPED:
        assert answer["name"] == name
    fields = {field.name for field in msgspec.structs.fields(operation.arguments)}
    assert set(sent) <= fields, "the model takes no others"


def test_what_is_not_given_has_the_tables_default(client: Recorder) -> None:
    client.abort_weight_update()
    assert client.last == ("abort_weight_update", {"reason": "asked for", "update_id": None, "force": False}, 7, None)


def test_signatures(client: Recorder) -> None:
    """The arguments by position, the payload, the timeout; the rest by keyword."""
    shown = {
        name: str(inspect.signature(getattr(client, name)).replace(return_annotation=inspect.Signature.empty))
        for name in ("status", "rollback", "remove_adapter", "score")
    }
    assert shown["status"] == "(timeout: float | None = None)"
    assert shown["remove_adapter"] == "(name: str, timeout: float | None = None)"
    rollback = list(inspect.signature(client.rollback).parameters.values())
    assert [parameter.name for parameter in rollback] == ["in_flight", "timeout", "to", "update_id"]
    assert [parameter.kind for parameter in rollback[2:]] == [inspect.Parameter.KEYWORD_ONLY] * 2
    assert list(inspect.signature(client.stage_adapter).parameters) == [
        *("name", "version", "config", "digest", "payload", "timeout")
    ]
    client.fence("because", 3, unless_committed="u1")
    assert client.last == ("fence", {"reason": "because", "unless_committed": "u1"}, 3, None)
    client.stage_adapter("a", "v1", {"r": 8}, "00", b"x", 2)
    arguments = {"name": "a", "version": "v1", "config": {"r": 8}, "digest": "00"}
    assert client.last == ("stage_adapter", arguments, 2, b"x")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda client: client.fence(),
        lambda client: client.fence("because", because=1),
        lambda client: client.stage_adapter("a", "v1", {}, "00"),
        lambda client: client.status(1, 2),
    ],
)
def test_wrong_arguments_are_python_errors(client: Recorder, wrong: Any) -> None:
    with pytest.raises(TypeError):
        wrong(client)
    assert client.calls == []


def test_what_is_no_operation(client: Recorder) -> None:
    with pytest.raises(AttributeError):
        client.no_such_operation()
    with pytest.raises(InvalidError, match=r"no_such_operation: unknown; there are .*status"):
        client.call("no_such_operation")


def test_vllms_protocol(client: Recorder) -> None:
    """vLLM's trainer engines call these four with positional arguments of vLLM's protocol."""
    named = [name for name, value in vars(VLLMWeightSyncClient).items() if inspect.isfunction(value)]
    methods = [name for name in named if name in OPERATIONS]
    assert set(methods) == {
        *("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")
    }
    for name in methods:
        theirs = list(inspect.signature(getattr(VLLMWeightSyncClient, name)).parameters.values())
        ours = list(inspect.signature(getattr(ControlClient, name)).parameters.values())
        assert [each.name for each in ours[: len(theirs)]] == [each.name for each in theirs]
        assert all(each.default is not inspect.Parameter.empty for each in ours[len(theirs) :])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.INVALID, InvalidError),
        (ErrorCode.NOT_FOUND, InvalidError),
        (ErrorCode.REFUSED, RefusedError),
        (ErrorCode.CONFLICT, ConflictError),
        (ErrorCode.UNAVAILABLE, UnavailableError),
        (ErrorCode.UNSUPPORTED, ControlError),
        (ErrorCode.INTERNAL, ControlError),
        (ErrorCode.CANCELLED, ControlError),
    ],
)
def test_codes_are_errors(code: ErrorCode, kind: type[ControlError]) -> None:
    error = control_error("http://here:1", "fence", "no", code)
    assert type(error) is kind
    assert (error.target, error.operation, error.message) == ("http://here:1", "fence", "no")
    assert type(triton_error("t", "fence", f"no [{code}]", ErrorCode.CONFLICT)) is kind
    assert type(triton_error("t", "fence", "no", code)) is kind
