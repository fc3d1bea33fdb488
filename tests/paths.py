"""Marks, time limit and shared stack (under xdist) of the tests, by path.

The longest path that fits wins. A test that sets one of these marks itself keeps its own.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNIT_TIMEOUT_S, STACK_TIMEOUT_S, SLOW_TIMEOUT_S = 120, 300, 600


SHARED = "shared"
"""Group of the tests that share the stack of the session fixture `stack`."""
BY_CASE = "matrix"
"""Group of the matrix, one for each case: "matrix tp2-untied"."""
VARIANTS = ("-shared memory", "-broadcast")
"""End the names of a case's tests."""


@dataclass(frozen=True)
class Needs:
    """Marks of the tests below one path.

    `group`: with pytest-xdist, tests of one group run in one process, so that they share a running stack.
    """

    marks: tuple[str, ...] = ()
    timeout_s: float = UNIT_TIMEOUT_S
    group: str | None = None

    @property
    def starts_stacks(self) -> bool:
        """Whether the tests start stacks of their own."""
        return "stack" in self.marks and self.group != SHARED


NEEDS = {
    "tests": Needs(),
    # The stack of the session fixture `stack`.
    "tests/stack": Needs(("stack",), STACK_TIMEOUT_S, SHARED),
    "tests/sync/test_push_stack.py": Needs(("stack",), STACK_TIMEOUT_S, SHARED),
    "tests/property/test_stack_sequences.py": Needs(("stack",), STACK_TIMEOUT_S, SHARED),
    "tests/faults": Needs(("stack", "fault"), SLOW_TIMEOUT_S, SHARED),
    # Stacks of their own.
    "tests/faults/slow": Needs(("stack", "fault", "slow"), SLOW_TIMEOUT_S, "slow faults"),
    "tests/faults/test_fleet.py": Needs(("stack", "fault"), SLOW_TIMEOUT_S, "replicas"),
    "tests/faults/test_replicas.py": Needs(("stack", "fault"), SLOW_TIMEOUT_S, "replicas"),
    "tests/stack/test_adapters.py": Needs(("stack",), STACK_TIMEOUT_S, "two front ends"),
    "tests/stack/test_lifecycle.py": Needs(("stack", "fault"), STACK_TIMEOUT_S, "two front ends"),
    "tests/stack/test_rust_port.py": Needs(("stack",), STACK_TIMEOUT_S, "rust port"),
    "tests/stack/test_smollm2.py": Needs(("stack",), STACK_TIMEOUT_S, "smollm2"),
    "tests/trl": Needs(("stack",), STACK_TIMEOUT_S, "trl"),
    "tests/bench/test_hop_stack.py": Needs(("stack",), STACK_TIMEOUT_S),
    "tests/launch/test_dummy_weights.py": Needs(("stack",), STACK_TIMEOUT_S),
    "tests/packaging/test_wheel.py": Needs(("stack",), STACK_TIMEOUT_S, "wheel"),
    "tests/matrix": Needs(("stack", "matrix"), SLOW_TIMEOUT_S, BY_CASE),
    "tests/gpu": Needs(("stack", "gpu"), SLOW_TIMEOUT_S, "gpu"),
    # An engine without a stack.
    "tests/sync/test_offline_llm.py": Needs(("stack",), STACK_TIMEOUT_S, "offline"),
    "tests/sync/worker/test_loaded_parameters.py": Needs(("stack",), STACK_TIMEOUT_S, "loaded models"),
    # Hundreds of random sequences in one test.
    "tests/property/test_sequences.py": Needs(("property",), 1000),
}


def needs_of(path: Path) -> Needs:
    """Marks and group of the tests in this file."""
    relative = path.relative_to(ROOT)
    return next(NEEDS[str(each)] for each in (relative, *relative.parents) if str(each) in NEEDS)


def group_of(nodeid: str) -> str:
    """Group of a test; a test without one is its own group."""
    file, _, name = nodeid.partition("::")
    group = needs_of(ROOT / file).group
    if group == BY_CASE:
        case = name.partition("[")[2].removesuffix("]")
        for variant in VARIANTS:
            case = case.removesuffix(variant)
        return f"{group} {case}"
    return group or nodeid


def add_marks(item: pytest.Item) -> None:
    """Mark a test as its path says. A row of the fault list is a fault, wherever it is tested."""
    needs = needs_of(item.path)
    for name in needs.marks:
        item.add_marker(name)
    if item.get_closest_marker("row") is not None:
        item.add_marker("fault")
    if needs.starts_stacks:
        item.add_marker("own_stack")
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(needs.timeout_s))
