"""Tests get their marks, time limits and groups by path."""

import pytest

from tests.paths import NEEDS, ROOT, group_of, needs_of


def test_every_path_of_the_table_exists() -> None:
    assert [path for path in NEEDS if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("path", "marks", "timeout_s"),
    [
        ("tests/launch/test_process.py", (), 120),
        ("tests/stack/test_native.py", ("stack",), 300),
        ("tests/stack/test_lifecycle.py", ("stack", "fault"), 300),
        ("tests/faults/test_fleet.py", ("stack", "fault"), 600),
        ("tests/gpu/test_push.py", ("stack", "gpu"), 600),
    ],
)
def test_the_longest_path_says_what_a_test_needs(path: str, marks: tuple[str, ...], timeout_s: float) -> None:
    needs = needs_of(ROOT / path)
    assert (needs.marks, needs.timeout_s) == (marks, timeout_s)


def test_this_test_has_its_paths_time_limit(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("timeout")
    assert marker is not None
    assert marker.args == (120,)


def test_tests_of_a_stack_are_one_group() -> None:
    first, second = "tests/stack/test_native.py::test_a[x]", "tests/faults/test_wire.py::test_b"
    assert group_of(first) == group_of(second) == "shared"
    assert group_of("tests/faults/test_fleet.py::test_c") == "replicas"


@pytest.mark.parametrize(
    ("path", "starts"),
    [
        ("tests/stack/test_native.py", False),
        ("tests/launch/test_process.py", False),
        ("tests/stack/test_rust_port.py", True),
        ("tests/launch/test_dummy_weights.py", True),
    ],
)
def test_which_tests_start_stacks_of_their_own(path: str, starts: bool) -> None:
    assert needs_of(ROOT / path).starts_stacks == starts


def test_a_unit_test_is_a_group_of_its_own() -> None:
    assert group_of("tests/launch/test_process.py::test_a[1]") == "tests/launch/test_process.py::test_a[1]"


def test_each_case_of_the_matrix_is_a_group() -> None:
    path = "tests/matrix/test_matrix.py"
    names = ("test_a[tp2-untied]", "test_b[tp2-untied-shared memory]", "test_b[tp2-untied-broadcast]")
    assert {group_of(f"{path}::{name}") for name in names} == {"matrix tp2-untied"}
    assert group_of(f"{path}::test_a[fleet-of-tp2-and-1]") == "matrix fleet-of-tp2-and-1"


def test_pytest_xdist_still_asks_for_the_scope() -> None:
    scheduling = pytest.importorskip("xdist.scheduler").LoadScopeScheduling
    assert callable(scheduling._split_scope)
