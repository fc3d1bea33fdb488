"""The table of control operations, from which the model's dispatch, the clients, the routes and the pages are made."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType

from tritonlive.wire.operation import Arguments, Name, Operation

from . import adapters, engine, weights

GROUPS: tuple[ModuleType, ...] = (engine, weights, adapters)
"""The modules that define operations, in the order in which pages list them."""


def operations_of(module: ModuleType) -> Iterator[Operation]:
    """The operations that a module defines, in its order."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Arguments) and value.__module__ == module.__name__:
            yield value.operation


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {operation.name: operation for module in GROUPS for operation in operations_of(module)}
)

PUBLIC_OPERATIONS = frozenset(name for name, operation in OPERATIONS.items() if operation.is_public)
"""Operations that need no control key: what a front end asks before anyone has shown one, and probes."""

HOLDER_ARGUMENT = "holder"
"""Additional argument of any operation: the name with which the calling trainer took the lease."""

Holder = Name | None
"""Its type."""
