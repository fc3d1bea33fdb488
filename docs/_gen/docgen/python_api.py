"""The trainer's Python interface: signatures and docstrings of what `sync` exports."""

import inspect
from collections.abc import Iterator
from typing import Any

from docgen import tables

CLASSES = ("WeightSync", "Rollouts")
RESULTS = ("PushReport", "AdapterReport", "RolloutBatch", "Scores")


def python_api() -> str:
    import sync

    parts = []
    for name in CLASSES:
        parts += list(_class_section(name, getattr(sync, name)))
    for name in RESULTS:
        found = getattr(sync, name)
        parts += [f"## {name}", _text(found), _fields(found)]
    return "\n\n".join(part for part in parts if part)


def errors_table() -> str:
    """The error tree, most general first."""
    import sync

    found = [getattr(sync, name) for name in sync.__all__]
    errors = [each for each in found if inspect.isclass(each) and issubclass(each, sync.SyncError)]
    rows = [
        (tables.code(each.__name__), tables.code(each.__base__.__name__), (each.__doc__ or "").partition("\n\n")[0])
        for each in errors
    ]
    return tables.table(("error", "is a", "meaning"), rows)


def _class_section(name: str, found: Any) -> Iterator[str]:
    yield f"## {name}"
    yield f"```python\n{name}{_signature(found)}\n```"
    yield _text(found)
    for method, function in vars(found).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            yield f"### {name}.{method}"
            yield f"```python\n{method}{_signature(function)}\n```"
            yield _text(function)


def _signature(found: Any) -> str:
    """The parameters, one a line."""
    shown, is_keyword = [], False
    for name, each in inspect.signature(found).parameters.items():
        if name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not is_keyword:
            is_keyword = True
            shown.append("*")
        annotation = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        shown.append(str(each.replace(annotation=each.empty, default=each.empty)) + f": {annotation}" + _default(each))
    body = "".join(f"\n    {line}," for line in shown)
    return f"({body}\n)" if shown else "()"


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else f" = {parameter.default!r}"


def _text(found: Any) -> str:
    text = inspect.getdoc(found)
    return f"```text\n{text}\n```" if text else ""


def _fields(found: Any) -> str:
    names = getattr(found, "__dataclass_fields__", {})
    return "Fields: " + ", ".join(map(tables.code, names)) + "." if names else ""
