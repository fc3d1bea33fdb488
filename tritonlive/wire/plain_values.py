"""What a JSON value may hold so that every process can encode it: UTF-8 text, 64-bit integers, finite numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .limits import (
    MAX_INT64,
    MAX_NESTING,
    MAX_STRING_CHARACTERS,
    MIN_INT64,
    SAMPLING_LENGTHS,
    SAMPLING_RANGES,
)


class Problem(NamedTuple):
    """`path` names the value, from the outside in: `stop[2]`, `structured_outputs.regex`."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def find_problem(value: Any, path: str) -> Problem | None:
    """The first part of a value that cannot be encoded, or that lies too deep; None where there is none."""
    pending = [(path, value, 0)]
    while pending:
        at, part, depth = pending.pop()
        if depth > MAX_NESTING:
            return Problem(path, f"is nested more than {MAX_NESTING} levels deep")
        if (text := _scalar_problem(part)) is not None:
            return Problem(at, text)
        if isinstance(part, Mapping):
            for name, inner in part.items():
                if _scalar_problem(name) is not None:
                    return Problem(at, "has a name that UTF-8 cannot encode")
                pending.append((f"{at}.{name}" if at else str(name), inner, depth + 1))
        elif isinstance(part, list | tuple):
            pending += [(f"{at}[{index}]", inner, depth + 1) for index, inner in enumerate(part)]
    return None


def _scalar_problem(value: Any) -> str | None:
    if isinstance(value, str):
        return None if is_encodable(value) else "holds text that UTF-8 cannot encode"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"must be a finite number, is {value}"
    if isinstance(value, int) and not MIN_INT64 <= value <= MAX_INT64:
        return "must be an integer of at most 64 bits"
    return None


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode `text`: it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_sampling_problem(values: Mapping[str, Any]) -> Problem | None:
    """The first sampling parameter that is longer or larger than tritonlive/wire/limits.py allows.

    values: by vLLM's names, of vLLM's types. Those that are None or missing are passed over.
    """
    for name, (lowest, highest) in SAMPLING_RANGES.items():
        value = values.get(name)
        if isinstance(value, int) and not lowest <= value <= highest:
            return Problem(name, f"must be in [{lowest}, {highest}], is {_short(value)}")
    for name, most in SAMPLING_LENGTHS.items():
        value = values.get(name)
        if isinstance(value, list | Mapping) and len(value) > most:
            return Problem(name, f"holds {len(value)} values, at most {most} are allowed")
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and len(text) > MAX_STRING_CHARACTERS:
                return Problem(name, f"holds a text of {len(text)} characters, at most {MAX_STRING_CHARACTERS}")
    return None


def _short(value: int) -> str:
    """`value`, or its size in bits: Python refuses to print integers of more than 4,300 digits."""
    return str(value) if MIN_INT64 <= value <= MAX_INT64 else f"an integer of {value.bit_length()} bits"
