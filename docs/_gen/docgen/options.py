"""Every option of the command line, read from the typer application."""

import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from docgen import source, tables


@dataclass(frozen=True)
class Option:
    command: str
    names: tuple[str, ...]
    default: str
    variable: str
    """The environment variable that sets it, if any."""
    help: str


def application() -> Any:
    """The click command behind `tritonlive`, found by the entry point in pyproject.toml."""
    import typer.main

    project = tomllib.loads((source.ROOT / "pyproject.toml").read_text())["project"]
    module, _, _ = project["scripts"]["tritonlive"].partition(":")
    return typer.main.get_command(importlib.import_module(module).app)


def commands() -> Iterator[tuple[str, Any]]:
    """(name, click command) of every command, groups included."""

    def walk(prefix: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield prefix, command
        for name, each in getattr(command, "commands", {}).items():
            if not each.hidden:
                yield from walk(f"{prefix} {name}", each)

    yield from walk("tritonlive", application())


def options() -> list[Option]:
    return [_option(name, parameter) for name, command in commands() for parameter in _documented(command)]


def options_sections() -> str:
    """A section for each command: its description and a table of its options."""
    parts = []
    for name, command in commands():
        rows = [
            (", ".join(map(tables.code, each.names)), each.help, tables.code(each.default), tables.code(each.variable))
            for each in (_option(name, parameter) for parameter in _documented(command))
        ]
        parts += [f"## {name}", _plain(command.help).partition("\n\n")[0]]
        parts.append(tables.table(("option", "meaning", "default", "variable"), rows) if rows else "It has no options.")
    return "\n\n".join(parts)


def _documented(command: Any) -> list[Any]:
    return [each for each in command.params if each.name != "help" and not getattr(each, "hidden", False)]


def _option(command: str, parameter: Any) -> Option:
    is_argument = parameter.param_type_name == "argument"
    return Option(
        command,
        (parameter.metavar or parameter.name.upper(),)
        if is_argument
        else tuple(parameter.opts + parameter.secondary_opts),
        "required" if parameter.required else _default(parameter.default),
        str(parameter.envvar or ""),
        _plain(getattr(parameter, "help", "") or ""),
    )


def _default(value: Any) -> str:
    if value is None or value is False or callable(value):
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(getattr(value, "value", value))


def _plain(text: str | None) -> str:
    """Help text without rich's markup."""
    from rich.text import Text

    return Text.from_markup(text or "").plain.strip()
