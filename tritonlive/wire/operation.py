"""A control operation: its name, arguments, result, access, and its route at a front end.

An operation is defined by its arguments' class, which `operation` decorates; its docstring is the documentation:

    @operation("fence", Outcome, lease=Lease.HOLDER, route=Route("POST", "/fence"))
    class Fence(Arguments):
        \"\"\"Refuse to generate until a push commits.\"\"\"
        reason: str

`tritonlive.wire.operations` has the table of them all.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from .limits import MAX_NAME

VersionName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=r"^[!-~]([ -~]*[!-~])?\Z")]
"""Name of a version: printable ASCII without spaces at its ends, because it travels in a response header."""
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
"""Name that a client gives to an update or to itself."""
Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Lease(StrEnum):
    """Who may call an operation while a trainer holds the replica's lease. A leased call renews the lease."""

    ANYONE = "anyone"
    HOLDER = "holder"
    HOLDER_UNLESS_FORCED = "holder, or anyone with `force`"


class Scope(StrEnum):
    """Which replicas a front end asks, and what their answers make together."""

    ONE = "one"
    """The only replica. With several the front end refuses: weights must change at all of them together."""
    ALL = "all"
    """Every replica at once; the first error is the answer, else the truths are and-ed and the lists intersected."""
    EACH = "each"
    """Every replica. The answer lists their answers."""
    OWN = "own"
    """Each replica, by the front end on its own behalf: no client of the front end calls it."""


@dataclass(frozen=True)
class Route:
    """Where a front end serves an operation over HTTP.

    Arguments travel in a JSON body. With a {name} in the path, or `in_query`, they travel in the URL.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    is_vllms: bool = False
    """vLLM's own router serves it, with the same arguments and answer."""
    in_query: bool = False
    message: str | None = None
    """vLLM's `message` in the answer, beside the result."""
    metric: Literal["start", "update", "finish"] | None = None
    """The label of vLLM's weight operation metrics under which the call counts."""

    @property
    def is_in_url(self) -> bool:
        return self.in_query or "{" in self.path


class Arguments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the arguments of an operation; a field is an argument."""

    operation: ClassVar["Operation"]


@dataclass(frozen=True)
class Operation:
    """One control operation."""

    name: str
    arguments: type[Arguments]
    result: Any
    """A TypedDict: the JSON object that the operation answers with."""
    documentation: str
    is_public: bool
    """Whether it needs no control key."""
    lease: Lease
    scope: Scope
    route: Route | None
    has_payload: bool
    """Whether the call carries bytes in addition to its arguments."""
    changes_version: bool
    """Whether the result's `weight_version` serves from now on."""
    positional: tuple[str, ...]
    """Arguments that a client's method takes by position."""

    def parse(self, arguments: Mapping[str, Any]) -> Arguments:
        """Raises msgspec.ValidationError, which names the argument at fault."""
        return msgspec.convert(dict(arguments), self.arguments)

    def require_route(self) -> Route:
        """Raises LookupError for an operation that no front end serves."""
        if self.route is None:
            raise LookupError(f"{self.name} has no HTTP route")
        return self.route

    def requires_holder(self, arguments: Arguments) -> bool:
        """Whether only the lease's holder may make this call."""
        if self.lease is Lease.HOLDER_UNLESS_FORCED:
            return not getattr(arguments, "force", False)
        return self.lease is Lease.HOLDER


A = TypeVar("A", bound=type[Arguments])


def operation(
    name: str,
    result: Any,
    *,
    is_public: bool = False,
    lease: Lease = Lease.ANYONE,
    scope: Scope = Scope.ONE,
    route: Route | None = None,
    has_payload: bool = False,
    changes_version: bool = False,
    positional: tuple[str, ...] | None = None,
) -> Callable[[A], A]:
    """Make an operation of the decorated arguments. By default the required ones are positional for clients."""

    def define(arguments: A) -> A:
        fields = msgspec.structs.fields(arguments)
        arguments.operation = Operation(
            name=name,
            arguments=arguments,
            result=result,
            documentation=inspect.cleandoc(arguments.__doc__ or ""),
            is_public=is_public,
            lease=lease,
            scope=scope,
            route=route,
            has_payload=has_payload,
            changes_version=changes_version,
            positional=tuple(field.name for field in fields if field.required) if positional is None else positional,
        )
        return arguments

    return define
