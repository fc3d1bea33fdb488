"""Every HTTP route of the front end, read from the finished app."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from docgen import tables

DISABLED = "Disabled scale out"  # vLLM's handler in place of those that an argument enables
KEYS = {"open": "none", "inference": "inference", "control": "control"}


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    access: str
    """open, inference or control."""
    origin: str
    """tritonlive or vLLM: whose code answers."""
    summary: str


@cache
def routes() -> tuple[Route, ...]:
    """The routes of `vllm serve` for a generating model, and ours, as `openai_frontend` assembles them."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from openai_frontend.auth import access_of
    from openai_frontend.routes import control, trl_legacy

    app = build_app(make_arg_parser(FlexibleArgumentParser()).parse_args([]), ("generate",), None)
    controls = control.attach(app) | trl_legacy.attach(app)
    found: dict[tuple[str, str], Route] = {}  # the first route that matches serves
    for route in app.router.routes:
        for method in _methods(route):
            path = str(getattr(route, "path", ""))
            endpoint = getattr(route, "endpoint", None)
            origin = "tritonlive" if (getattr(endpoint, "__module__", "") or "").startswith("openai_") else "vLLM"
            entry = Route(method, path, access_of(path, controls).value, origin, _summary(endpoint))
            found.setdefault((method, path), entry)
    return tuple(sorted(found.values(), key=lambda each: (list(KEYS).index(each.access), each.path, each.method)))


def routes_table() -> str:
    rows = [(each.method, tables.code(each.path), KEYS[each.access], each.origin, each.summary) for each in routes()]
    return tables.table(("method", "path", "key", "from", "what it does"), rows)


def _methods(route: Any) -> Iterator[str]:
    return iter(sorted(set(getattr(route, "methods", None) or ()) - {"HEAD"}))


def _summary(endpoint: Any) -> str:
    """The first paragraph of a handler's docstring, else its name in words."""
    name = getattr(endpoint, "__name__", "").replace("_", " ").capitalize()
    if name == DISABLED:
        return "Answers 403 without `--enable-scale-out`."
    first = (inspect.getdoc(endpoint) or name).partition("\n\n")[0]
    return " ".join(first.split())
