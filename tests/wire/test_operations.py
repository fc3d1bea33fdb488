"""tritonlive/wire/operations: the one table of control operations."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from vllm.v1.engine import PauseMode

from tritonlive.wire.operation import Arguments, Lease, Scope
from tritonlive.wire.operations import GROUPS, OPERATIONS, PUBLIC_OPERATIONS, operations_of
from tritonlive.wire.operations.engine import InFlightMode

ROOT = Path(__file__).parents[2]
PACKAGES = ("sync", "openai_frontend", "tritonlive")
TABLE = ROOT / "tritonlive/wire/operations"
MAX_NAMES = 3
"""A collection with more operations' names than this restates the table."""


def all_arguments(base: type[Arguments] = Arguments) -> Iterator[type[Arguments]]:
    for each in base.__subclasses__():
        yield each
        yield from all_arguments(each)


def test_every_operation_is_in_the_table_once() -> None:
    listed = [operation.name for module in GROUPS for operation in operations_of(module)]
    assert len(listed) == len(set(listed)) == len(OPERATIONS) == len(set(all_arguments()))
    assert {arguments.operation.name for arguments in all_arguments()} == set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_documented(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.documentation.endswith((".", ".\n")), "a sentence"
    assert get_type_hints(operation.result) is not None
    assert set(operation.positional) <= set(operation.arguments.__struct_fields__)


def test_who_may_call() -> None:
    assert sorted(PUBLIC_OPERATIONS) == ["describe", "flush_generations", "health"]
    leased = {name for name, operation in OPERATIONS.items() if operation.lease is not Lease.ANYONE}
    assert leased == {
        *("shutdown_weight_transfer_engine", "start_weight_update", "update_weights", "prepare_weight_update"),
        *("finish_weight_update", "abort_weight_update", "renew_lease", "rollback", "reload", "fence"),
    }
    abort = OPERATIONS["abort_weight_update"]
    assert abort.requires_holder(abort.parse({}))
    assert not abort.requires_holder(abort.parse({"force": True}))
    assert not PUBLIC_OPERATIONS & leased


def test_what_changes_the_version_reports_it() -> None:
    changing = {name for name, operation in OPERATIONS.items() if operation.changes_version}
    assert changing == {"finish_weight_update", "rollback", "reload"}
    assert all("weight_version" in get_type_hints(OPERATIONS[name].result) for name in changing)


def test_routes() -> None:
    routes = [operation.route for operation in OPERATIONS.values() if operation.route is not None]
    assert len({(route.method, route.path) for route in routes}) == len(routes)
    for operation in OPERATIONS.values():
        if (route := operation.route) is None:
            with pytest.raises(LookupError, match=operation.name):
                operation.require_route()
            continue
        fields = set(operation.arguments.__struct_fields__)
        in_path = {part[1:-1] for part in route.path.split("/") if part.startswith("{")}
        assert in_path <= fields
        if route.method == "GET":
            assert fields == in_path, "a GET has no body"
        if operation.scope is Scope.ALL:
            assert route.is_vllms, "the engine client combines the answers, and vLLM's router calls it"
    assert [name for name, operation in OPERATIONS.items() if operation.scope is Scope.EACH] == ["status"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("start_weight_update", {"update_id": 3}, r"got `int` - at `\$\.update_id`"),
        ("start_weight_update", {"in_flight": "hold"}, r"'hold' - at `\$\.in_flight`"),
        ("start_weight_update", {"id": "u1"}, "unknown field `id`"),
        ("fence", {}, "missing required field `reason`"),
        ("update_weights", {"update_info": "all"}, r"at `\$\.update_info`"),
        ("rollback", {"to": ""}, r"length >= 1 - at `\$\.to`"),
        ("finish_weight_update", {"weight_version": "v" * 201}, r"length <= 200 - at `\$\.weight_version`"),
        ("update_weight_version", {"new_version": None}, r"at `\$\.new_version`"),
        ("score", {"prompts": []}, r"length >= 1 - at `\$\.prompts`"),
        ("score", {"prompts": [[1, 2], [1]]}, r"at `\$\.prompts\[1\]`"),
        ("score", {"prompts": [[1, 2]] * 257}, r"length <= 256 - at `\$\.prompts`"),
        ("stage_adapter", {"name": "a", "version": "v", "config": []}, r"at `\$\.config`"),
        ("sleep", {"level": True}, r"at `\$\.level`"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        OPERATIONS[name].parse(arguments)


def test_the_modes_are_vllms() -> None:
    assert set(get_args(InFlightMode)) == set(get_args(PauseMode))


def test_add_lora_takes_what_vllm_does() -> None:
    from vllm.lora.request import LoRARequest

    given = {field.name: field for field in msgspec.structs.fields(LoRARequest)}
    assert set(OPERATIONS["add_lora"].arguments.__struct_fields__) == set(given)


def test_no_module_restates_the_table() -> None:
    """Neither a dict, nor a list, a set or a tuple of operations' names is anywhere but in the table."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        if path.is_relative_to(TABLE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = names_in(node) & OPERATIONS.keys()
            if len(names) > MAX_NAMES:
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = sorted(names)  # ty: ignore[missing-attribute]
    assert not found


def names_in(node: ast.AST) -> set[str]:
    match node:
        case ast.Dict(keys=elements) | ast.List(elts=elements) | ast.Set(elts=elements) | ast.Tuple(elts=elements):
            return {each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return set()


def test_the_check_for_restatements_sees_one() -> None:
    (statement,) = ast.parse("x = {'status': 1, 'fence': 2, 'rollback': 3, 'reload': 4}").body
    assert isinstance(statement, ast.Assign)
    assert len(names_in(statement.value) & OPERATIONS.keys()) > MAX_NAMES


def test_operations_are_named_as_their_arguments_read() -> None:
    """GetStatus is `status`, Fence is `fence`."""
    for operation in OPERATIONS.values():
        spelled = "".join(part.title() for part in operation.name.split("_"))
        assert operation.arguments.__name__ in (spelled, f"Get{spelled}"), operation.name
        assert inspect.getmodule(operation.arguments) in GROUPS
