"""The control operations as a page, made from their table."""

import inspect
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from .operation import Lease, Operation, Scope
from .operations import GROUPS, operations_of

LEASES = {
    Lease.ANYONE: "no",
    Lease.HOLDER: "yes",
    Lease.HOLDER_UNLESS_FORCED: "yes, unless `force`",
}
HEADER = (
    "| Operation | Arguments | Key | Lease | HTTP | Replicas |",
    "|---|---|---|---|---|---|",
)
LEGEND = (
    "*Key*: whether the call needs the control key. *Lease*: whether only the trainer that holds the lease may call.",
    "*Replicas*: which ones a front end asks. "
    + " ".join(
        f"`{scope}`: {meaning}"
        for scope, meaning in {
            Scope.ONE: "the only one; with several it answers 422, since a trainer must address each.",
            Scope.ALL: "all at once.",
            Scope.EACH: "each; the answer lists theirs.",
            Scope.OWN: "each, on the front end's own behalf.",
        }.items()
    ),
)


def operations_markdown() -> str:
    """Markdown: for each group of operations a heading, a table, and what each operation does."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield from LEGEND
    yield ""
    for group in GROUPS:
        operations = list(operations_of(group))
        yield f"## {inspect.cleandoc(group.__doc__ or group.__name__).partition(': ')[0]}"
        yield ""
        yield from HEADER
        yield from (_row(operation) for operation in operations)
        yield ""
        for operation in operations:
            yield f"**`{operation.name}`** {' '.join(operation.documentation.split())}"
            yield f"Answers {_answer(operation)}."
            yield ""


def _row(operation: Operation) -> str:
    cells = (
        f"`{operation.name}`",
        "<br>".join(_arguments(operation)) or "-",
        "no" if operation.is_public else "yes",
        LEASES[operation.lease],
        _route(operation),
        f"`{operation.scope}`",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _answer(operation: Operation) -> str:
    fields = ", ".join(_fields(operation.result))
    meaning = " ".join((vars(operation.result).get("__doc__") or "").split()).removesuffix(".")
    return f"{fields}: {meaning}" if fields and meaning else fields or "an empty object"


def _arguments(operation: Operation) -> Iterator[str]:
    for field in msgspec.structs.fields(operation.arguments):
        default = "" if field.required else f" = {msgspec.json.encode(field.default).decode()}"
        yield f"`{field.name}: {type_name(field.type)}{default}`"
    if operation.has_payload:
        yield "payload (bytes)"


def _fields(result: Any) -> Iterator[str]:
    for name, hint in get_type_hints(result, include_extras=True).items():
        yield f"`{name}: {type_name(hint)}`"


def _route(operation: Operation) -> str:
    if (route := operation.route) is None:
        return "-"
    return f"`{route.method} {route.path}`{' (vLLM)' if route.is_vllms else ''}"


def type_name(hint: Any) -> str:
    """A type as JSON's reader knows it: `string | null`, `list of {…}`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired):
        return type_name(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(type_name(part) for part in parts)
    if origin is Literal:
        return " | ".join(msgspec.json.encode(part).decode() for part in parts)
    if origin is list:
        return f"list of {type_name(parts[0])}"
    if origin is dict or is_typeddict(hint):
        return "object"
    if isinstance(hint, type) and issubclass(hint, str):
        return "string"
    return {bool: "boolean", int: "integer", float: "number", NoneType: "null"}.get(hint, str(hint))
