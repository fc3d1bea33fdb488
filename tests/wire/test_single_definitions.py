"""What tritonlive/wire defines is stated nowhere else in product code: other modules import the constants."""

import ast
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path

import pytest

from tritonlive.wire import environment, headers, outcomes, states, tensor_names

ROOT = Path(__file__).parents[2]
WIRE = ROOT / "tritonlive/wire"
FILES = sorted(
    path
    for package in ("tritonlive", "sync", "openai_frontend", "bench")
    for path in (ROOT / package).rglob("*.py")
    if not path.is_relative_to(WIRE)
)
VARIABLE = re.compile(r"TRITONLIVE_[A-Z_]*[A-Z](?![A-Z_])")  # not the prefix that the front end gives its own workers
# Tensors of control requests and engine traffic. Native ones are words of vLLM's API too ("logprobs", "stream").
TENSORS = {name for name in tensor_names.INPUTS | tensor_names.OUTPUTS if name.startswith(("control_", "engine_"))} - {
    tensor_names.CONTROL_KEY
}
"""Without `control_key`, which is also an argument of WeightSync."""
# Modules that make or read native tensors: every tensor's name there is a constant.
NATIVE_MODULES = sorted({*(ROOT / "tritonlive/backend/generation").glob("*.py"), ROOT / "sync/rollouts/rollouts.py"})
STATES = {
    member.value for kind in (states.State, states.AdapterState, outcomes.Outcome, outcomes.Code) for member in kind
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def literals(path: Path) -> Iterator[tuple[str, ast.expr]]:
    """String literals of a file, and the literal parts of f-strings; no docstrings. With their nodes."""
    tree = parsed(path)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value, node


def where(path: Path, node: ast.expr) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_environment_variables() -> None:
    defined = {value for name, value in vars(environment).items() if name.endswith("_VARIABLE")}
    assert all(VARIABLE.fullmatch(value) for value in defined)
    found = [where(path, node) for path in FILES for text, node in literals(path) if VARIABLE.search(text)]
    assert found == []


def test_headers() -> None:
    defined = {value for name, value in vars(headers).items() if name.endswith("_HEADER")}
    assert defined
    found = [where(path, node) for path in FILES for text, node in literals(path) if text.lower() in defined]
    assert found == []


def test_tensors_of_control_requests_and_engine_traffic() -> None:
    found = [where(path, node) for path in FILES for text, node in literals(path) if text in TENSORS]
    assert found == []


@pytest.mark.parametrize("path", NATIVE_MODULES, ids=lambda path: path.name)
def test_native_tensors(path: Path) -> None:
    """Where a tensor is indexed, read or refused by name; `"logprobs"` of sampling parameters is another thing."""
    names = tensor_names.INPUTS | tensor_names.OUTPUTS
    found = []
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Subscript(slice=ast.Constant(value=name)) | ast.Call(args=[ast.Constant(value=name), *_]):
                found += [where(path, node)] if name in names else []
            case ast.Call(func=ast.Name(id="read_string" | "read_array" | "read_bool"), args=[_, ast.Constant(), *_]):
                found.append(where(path, node))
    assert found == []


def test_the_models_name() -> None:
    found = [where(path, node) for path in FILES for text, node in literals(path) if text == tensor_names.MODEL]
    assert found == []


def test_states_and_outcomes_are_compared_as_members() -> None:
    """`x == State.DIRTY`, not `x == "dirty"`: a typing error there would never be noticed."""
    found = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Compare):
                compared = [each for part in (node.left, *node.comparators) for each in words(part)]
                found += [where(path, node)] if STATES & set(compared) else []
    assert found == []


def test_no_message_is_searched() -> None:
    """Errors are told apart by their class and their code; `error_codes.py` alone knows two sentences of Triton's."""
    found = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            match node:
                case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[searched]) if words(node.left):
                    found += [where(path, node)] if is_message(searched) else []
                case ast.Call(func=ast.Attribute(value=searched, attr="startswith" | "endswith" | "find")):
                    found += [where(path, node)] if is_message(searched) else []
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re")), args=[_, searched, *_]):
                    found += [where(path, node)] if is_message(searched) else []
    assert found == []


def is_message(node: ast.expr) -> bool:
    """Whether an expression is `str(…)` of something, or reads its `message`, `detail`, `details()` or `reason`."""
    match node:
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name()]):
            return True
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return name in ("message", "detail", "details", "reason")
    return False


@pytest.mark.parametrize("text", ["'dirty' in str(error)", "error.message.startswith('x')", "re.match('x', e.reason)"])
def test_the_check_for_searches_sees_one(text: str) -> None:
    node = ast.parse(text, mode="eval").body
    searched = node.comparators[0] if isinstance(node, ast.Compare) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        searched = node.args[-1] if ast.unparse(node.func.value) == "re" else node.func.value
    assert searched is not None
    assert is_message(searched)


def words(node: ast.expr) -> list[str]:
    """The string literals among `x`, or the elements of `(x, y)`."""
    elements = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_an_enums_values_are_in_one_enum() -> None:
    """No class outside the wire package has the states or the outcomes again."""
    wires = [{member.value for member in kind} for kind in (states.State, states.AdapterState, outcomes.Outcome)]
    found = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            match node:
                case ast.ClassDef(bases=bases, body=body) if StrEnum.__name__ in map(ast.unparse, bases):
                    values = {word for line in body if isinstance(line, ast.Assign) for word in words(line.value)}
                case ast.Tuple() | ast.List() | ast.Set():
                    values = set(words(node))
                case _:
                    continue
            found += [f"{path.relative_to(ROOT)}:{node.lineno}" for kind in wires if len(values & kind) > 1]
    assert found == []
