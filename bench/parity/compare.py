"""Compares two recordings field by field."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.parity.normalise import normalise, without_added
from bench.parity.recording import Recording
from bench.parity.shape import Shape
from bench.parity.streams import comparable

FLOAT_TOLERANCE = 1e-4
"""Largest accepted absolute difference between two floats (log-probabilities).

Models run in float32 and requests are sent one at a time, so most floats are bitwise equal. With n > 1, chance decides
whether choices share a batch, and another batch rounds differently: by 1e-2 in bfloat16, by less than this in float32.
"""

COMPARED = ("error", "status", "content_type", "headers", "json", "events", "text")
"""The compared parts of an answer. The time it took is not compared."""

MISSING = "<missing>"


@dataclass(frozen=True)
class Difference:
    """One field that differs: its shape and path, and both values."""

    shape: str
    path: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Justification:
    """An accepted difference and its reason. `*` in `shape` and `path` matches anything."""

    shape: str
    path: str
    reason: str

    def covers(self, difference: Difference) -> bool:
        """Whether the entry matches the difference."""
        return _matches(self.shape, difference.shape) and _matches(self.path, difference.path)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison."""

    num_shapes: int
    open: list[Difference]
    justified: list[tuple[Difference, Justification]]
    stale: list[Justification]
    """Justifications that match no difference any more and should be deleted."""

    @property
    def is_ok(self) -> bool:
        """Whether every difference is justified and every justification is used."""
        return not self.open and not self.stale


def compare(left: Recording, right: Recording, shapes: Iterable[Shape], justifications: list[Justification]) -> Verdict:
    """Compare the answers to `shapes`; separates justified differences from others."""
    shapes = list(shapes)
    open_: list[Difference] = []
    justified: list[tuple[Difference, Justification]] = []
    for difference in (found for shape in shapes for found in differences(shape, left, right)):
        reason = next((one for one in justifications if one.covers(difference)), None)
        if reason is None:
            open_.append(difference)
        else:
            justified.append((difference, reason))
    used = [reason for _, reason in justified]
    sent = [one for one in justifications if any(_matches(one.shape, shape.name) for shape in shapes)]
    return Verdict(len(shapes), open_, justified, [one for one in sent if one not in used])


def differences(shape: Shape, left: Recording, right: Recording) -> Iterator[Difference]:
    """All fields in which the two answers to one shape differ."""
    answers = (recording.get(shape.name, {"error": MISSING}) for recording in (left, right))
    one, other = (without_added(normalise(answer), shape.path) for answer in answers)
    if "events" in one and "events" in other:
        one["events"], other["events"] = comparable(one["events"], other["events"])
    keys = ("error", "status", "content_type") if shape.only == "status" else COMPARED
    for key in keys:
        for path, first, second in walk(one.get(key, MISSING), other.get(key, MISSING), f"$.{key}"):
            yield Difference(shape.name, path, first, second)


def walk(left: Any, right: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """`(path, left, right)` of every leaf that differs. A container that only one side has counts as one leaf."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in [*left, *(key for key in right if key not in left)]:
            yield from walk(left.get(key, MISSING), right.get(key, MISSING), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            yield f"{path}.length", len(left), len(right)
        for index, (first, second) in enumerate(zip(left, right, strict=False)):
            yield from walk(first, second, f"{path}[{index}]")
    elif not is_equal(left, right):
        yield path, left, right


def is_equal(left: Any, right: Any) -> bool:
    """Whether type and value are equal, floats within the tolerance. 1, 1.0 and true are different values in JSON."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or abs(left - right) <= FLOAT_TOLERANCE
    return type(left) is type(right) and bool(left == right)


def load_justifications(path: Path) -> list[Justification]:
    """Read the justified differences.

    Raises:
        TypeError: if an entry lacks a field or has one too many.
    """
    return [Justification(**entry) for entry in tomllib.loads(path.read_text()).get("justified", [])]


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), text, re.DOTALL) is not None
