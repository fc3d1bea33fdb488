"""The control client: what a trainer can ask of one replica, over gRPC or HTTP.

Its methods are made from the table of control operations (tritonlive/wire/operations): one of each operation's name.
It has vLLM's four structural `VLLMWeightSyncClient` methods, so vLLM's own trainer engines can be driven through it.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec

from sync.closing import Closing
from sync.errors import InvalidError
from tritonlive.wire.operation import Operation
from tritonlive.wire.operations import OPERATIONS

from .target import Target

DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Call:
    """One call of a control operation; `timeout` in seconds."""

    operation: Operation
    arguments: dict[str, Any]
    timeout: float
    payload: bytes | None = None


class ControlClient(Closing):
    """Control of one replica. Every call ends within `timeout` seconds; errors are those of `sync.errors`.

    Each operation is a method that returns the operation's JSON object, for example

        client.fence("serves other weights", 5.0, unless_committed=update_id)

    Its parameters are the operation's arguments: first those by position, then the payload if it takes one, then
    `timeout`; the rest by keyword. `help(ControlClient)` and docs/ list them.
    """

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self.target = target
        self.timeout = timeout
        self.holder: str | None = None  # what this trainer calls itself when it takes a lease

    @abstractmethod
    def send(self, call: Call) -> dict[str, Any]:
        """Run a call and return its JSON result."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections. The replica keeps its state."""

    def call(
        self,
        operation: str,
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
    ) -> dict[str, Any]:
        """Run the operation of that name and return its JSON result.

        payload: bytes that the operation takes beside its arguments.
        """
        if operation not in OPERATIONS:
            raise InvalidError(str(self.target), operation, f"unknown; there are {', '.join(sorted(OPERATIONS))}")
        seconds = self.timeout if timeout is None else timeout
        return self.send(Call(OPERATIONS[operation], arguments or {}, seconds, payload))

    # ---- vLLM's VLLMWeightSyncClient ------------------------------------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any], timeout: float | None = None) -> None:
        """Join the trainer's group, and take the lease."""
        self.call("init_weight_transfer_engine", {"init_info": init_info}, timeout)

    def start_weight_update(
        self, timeout: float | None = None, *, update_id: str | None = None, in_flight: str = "keep"
    ) -> None:
        """Begin an update. `in_flight` determines the handling of running requests: keep, wait or abort."""
        self.call("start_weight_update", {"update_id": update_id, "in_flight": in_flight}, timeout)

    def update_weights(
        self,
        update_info: dict[str, Any] | list[dict[str, Any]],
        timeout: float | None = None,
        *,
        update_id: str | None = None,
    ) -> None:
        """Receive the tensors that `update_info` announces."""
        self.call("update_weights", {"update_info": update_info, "update_id": update_id}, timeout)

    def finish_weight_update(
        self, weight_version: str | None = None, timeout: float | None = None, *, update_id: str | None = None
    ) -> dict[str, Any]:
        """Make the update live."""
        return self.call("finish_weight_update", {"weight_version": weight_version, "update_id": update_id}, timeout)

    # ---- methods that other code names, or whose result is unwrapped ----------------------------------------------

    def renew_lease(self, timeout: float | None = None) -> None:
        """Say that this trainer lives (sync/push/heartbeat.py)."""
        self.call("renew_lease", timeout=timeout)

    def weight_version(self, timeout: float | None = None) -> str:
        """The version of the weights that serve."""
        return self.call("get_weight_version", timeout=timeout)["weight_version"]

    def adapters(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """`name`, `version`, `state` (serving, staged, replaced), `bytes`, `tensors`, `requests` (running) of each."""
        return self.call("adapters", timeout=timeout)["adapters"]

    if TYPE_CHECKING:  # the methods that `add_methods` makes

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.target)!r})"


def method_of(operation: Operation) -> Callable[..., dict[str, Any]]:
    """The client's method for an operation, with the signature that ControlClient describes."""
    signature = signature_of(operation)

    def method(*args: Any, **keywords: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        client: ControlClient = arguments.pop("self")
        timeout, payload = arguments.pop("timeout"), arguments.pop("payload", None)
        return client.call(operation.name, arguments, timeout, payload)

    method.__name__ = operation.name
    method.__qualname__ = f"{ControlClient.__name__}.{operation.name}"
    method.__doc__ = operation.documentation
    vars(method)["__signature__"] = signature
    return method


def signature_of(operation: Operation) -> inspect.Signature:
    parameter, by_position, by_keyword = (
        inspect.Parameter,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    fields = {field.name: field for field in msgspec.structs.fields(operation.arguments)}
    types = get_type_hints(operation.arguments)  # without the bounds that the model checks

    def parameter_of(name: str, kind: Any) -> inspect.Parameter:
        # Before the payload, which is required, nothing may have a default.
        has_default = not fields[name].required and not (operation.has_payload and kind is by_position)
        default = fields[name].default if has_default else parameter.empty
        return parameter(name, kind, default=default, annotation=types[name])

    rest = [name for name in fields if name not in operation.positional]
    return inspect.Signature(
        [
            parameter("self", by_position),
            *(parameter_of(name, by_position) for name in operation.positional),
            *([parameter("payload", by_position, annotation=bytes)] if operation.has_payload else []),
            parameter("timeout", by_position, default=None, annotation=float | None),
            *(parameter_of(name, by_keyword) for name in rest),
        ],
        return_annotation=dict[str, Any],
    )


def add_methods(client: type[ControlClient]) -> None:
    """Give the class a method for each operation that it does not define itself."""
    for name, operation in OPERATIONS.items():
        if name not in vars(client):
            setattr(client, name, method_of(operation))


add_methods(ControlClient)
