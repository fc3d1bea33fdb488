"""Runs control operations: checks the key and the lease, reads the arguments, and calls the operation's handler.

The operations are those of tritonlive/wire/operations; each has one handler, the method of its name.
"""

import hmac
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from tritonlive.wire.environment import CONTROL_KEY_VARIABLE
from tritonlive.wire.operation import Arguments, Operation
from tritonlive.wire.operations import HOLDER_ARGUMENT, OPERATIONS, PUBLIC_OPERATIONS
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS, CONTROL_KEY, CONTROL_OPERATION, CONTROL_PAYLOAD

from .adapters.adapters import Adapters
from .adapters.lora_control import LoraControl
from .engine import Engine
from .engine_control import EngineControl
from .tensors import BadTensor, Refused, read_bytes, read_json_object, read_string
from .weights.history import InFlight
from .weights.weight_control import WeightControl
from .weights.weights import Weights

Handler = Callable[..., Awaitable[Any]]
"""Takes the operation's arguments, and its payload if it has one; returns its result."""


class Control:
    """Runs control operations on the engine's loop."""

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        adapters: Adapters,
        in_flight: InFlight,
        flush_generations: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._weights = weights
        self._handlers = bind_handlers(
            EngineControl(engine, weights, flush_generations),
            WeightControl(engine, weights, in_flight),
            LoraControl(engine, adapters),
        )

    async def run(self, request: Any) -> str:
        """Read a control request, check its key, run it. Returns the JSON result; raises RequestError."""
        name = read_string(request, CONTROL_OPERATION) or ""
        if name not in PUBLIC_OPERATIONS:
            self._check_key(read_string(request, CONTROL_KEY))
        operation = OPERATIONS.get(name)
        if operation is None:
            raise BadTensor(CONTROL_OPERATION, f"unknown {name!r}; there are {', '.join(sorted(OPERATIONS))}")
        given = read_json_object(request, CONTROL_ARGUMENTS) or {}
        holder = given.pop(HOLDER_ARGUMENT, None)
        inputs = (parse_arguments(operation, given), *read_payload(operation, request))
        handler = self._handlers[name]
        if not operation.requires_holder(inputs[0]):
            return encode(await handler(*inputs))
        lease = self._weights.lease
        lease.require(holder)
        lease.renew()
        try:
            return encode(await handler(*inputs))
        finally:
            lease.renew()  # the call itself may have taken longer than the lease

    def _check_key(self, key: str | None) -> None:
        expected = self._engine.settings.control_key
        if expected is None:
            raise Refused(CONTROL_KEY, f"control is off: the server was started without {CONTROL_KEY_VARIABLE}")
        if not hmac.compare_digest((key or "").encode(), expected.encode()):
            raise Refused(CONTROL_KEY, "missing or wrong")


def bind_handlers(*groups: object) -> Mapping[str, Handler]:
    """The public coroutine methods of `groups` by name.

    Raises TypeError unless every operation has exactly one handler, and every handler is that of an operation.
    """
    handlers: dict[str, Handler] = {}
    for group in groups:
        for name, method in inspect.getmembers(group, inspect.iscoroutinefunction):
            if name.startswith("_"):
                continue
            if name not in OPERATIONS:
                raise TypeError(f"{type(group).__name__}.{name} handles no operation of tritonlive/wire/operations")
            if name in handlers:
                raise TypeError(f"{type(group).__name__}.{name}: the operation has two handlers")
            handlers[name] = method
    if missing := sorted(OPERATIONS.keys() - handlers.keys()):
        raise TypeError(f"operations without a handler: {', '.join(missing)}")
    return handlers


def parse_arguments(operation: Operation, given: Mapping[str, Any]) -> Arguments:
    """Raises BadTensor, which names the operation and the argument at fault."""
    try:
        return operation.parse(given)
    except msgspec.ValidationError as error:
        raise BadTensor(CONTROL_ARGUMENTS, f"of {operation.name}: {error}") from None


def read_payload(operation: Operation, request: Any) -> tuple[bytes, ...]:
    """The payload of an operation that takes one, else nothing. Raises BadTensor."""
    payload = read_bytes(request, CONTROL_PAYLOAD)
    if operation.has_payload and payload is None:
        raise BadTensor(CONTROL_PAYLOAD, f"{operation.name} needs it")
    if not operation.has_payload and payload is not None:
        raise BadTensor(CONTROL_PAYLOAD, f"{operation.name} takes none")
    return () if payload is None else (payload,)


def encode(result: Any) -> str:
    return msgspec.json.encode(result).decode()
