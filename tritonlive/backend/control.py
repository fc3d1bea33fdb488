"""Runs control operations: checks the key and the lease, reads the arguments, and calls the operation's handler.

The operations are those of tritonlive/wire/operations; each has one handler, the method of its name.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from tritonlive.wire.operation import Arguments, Operation
from tritonlive.wire.operations import HOLDER_ARGUMENT, OPERATIONS, PUBLIC_OPERATIONS, Holder
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS, CONTROL_OPERATION, CONTROL_PAYLOAD

from .access import Access
from .adapters.adapters import Adapters
from .adapters.lora_control import LoraControl
from .engine import Engine
from .engine_control import EngineControl
from .tensors import BadTensor, read_bytes, read_string
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
        self._access = Access(engine.settings)
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
            self._access.require_control(request)
        operation = OPERATIONS.get(name)
        if operation is None:
            raise BadTensor(CONTROL_OPERATION, f"unknown {name!r}; there are {', '.join(sorted(OPERATIONS))}")
        given = read_arguments(request)
        holder = read_holder(given)
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


def read_arguments(request: Any) -> dict[str, Any]:
    """The operation's arguments and the holder's name. Raises BadTensor for anything else than a JSON object.

    Stricter than Python's own parser: no NaN, no number that is infinite, no surrogate without its pair.
    """
    try:
        return msgspec.json.decode(read_string(request, CONTROL_ARGUMENTS) or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadTensor(CONTROL_ARGUMENTS, f"is not a JSON object: {error}") from None


def read_holder(given: dict[str, Any]) -> str | None:
    """Take the holder's name out of the arguments. Raises BadTensor."""
    try:
        return msgspec.convert(given.pop(HOLDER_ARGUMENT, None), Holder)
    except msgspec.ValidationError as error:
        raise BadTensor(CONTROL_ARGUMENTS, f"{HOLDER_ARGUMENT}: {error}") from None


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
