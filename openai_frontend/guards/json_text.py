"""Finds what cannot be passed on in the JSON text of a request's body, without parsing an ordinary body.

Python's parser takes more than JSON allows: lone surrogates, integers of any size, NaN, UTF-16. They pass validation,
and msgpack cannot encode them on the way to the engine, so that vLLM answers 500. Deep nesting and hundreds of
thousands of keys end in recursion errors or hold up the event loop. vLLM 0.32 parses with `json.loads` and checks
integers in `vllm_xargs` only (`SamplingParams._verify_extra_args`).
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tritonlive.wire.plain_values import is_encodable

MAX_DEPTH = 100
MAX_KEYS = 100_000
MAX_ITEMS = 4_000_000
"""Values in lists and objects: 1,000 prompts of 4,000 token ids."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""What msgpack can encode."""

NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}:,'))
# High without low, or low without high.
LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
# Digits become 0, so that integers of 19 digits and exponents of three can be found by a search for text.
DIGITS_TO_ZERO = bytes.maketrans(b"123456789E", b"000000000e")
LARGE_NUMBERS = (b"0" * 19, b"e000", b"e+000")
NO_JSON_NUMBERS = (b"NaN", b"Infinity")


def find_fault(body: bytes) -> tuple[str | None, str] | None:
    """(name of the field or None, what is wrong) for a body that must not be passed on; None for any other.

    It does not say whether `body` is valid JSON: the routes do.
    """
    if not body.isascii() and not is_utf8(body):
        return None, "the body is not UTF-8"
    if b"\0" in body:
        return None, "the body has a NUL byte; JSON in UTF-8 has none"
    if (fault := find_large_structure(body)) is not None:
        return None, fault
    if not is_suspicious(body):
        return None
    try:
        parsed = json.loads(body)
    except json.JSONDecodeError:
        return None
    except ValueError:  # Python's own limit of digits
        return None, f"an integer has more than {sys.get_int_max_str_digits()} digits"
    return next(find_bad_values(parsed), None)


def is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def find_large_structure(body: bytes) -> str | None:
    """Too many levels, keys or values. Counts in the text first: strings can only make these numbers larger."""
    may_be_deep = body.count(b"[") + body.count(b"{") > MAX_DEPTH
    if not may_be_deep and body.count(b":") <= MAX_KEYS and body.count(b",") <= MAX_ITEMS:
        return None
    structure = structure_of(body)
    if np.count_nonzero(structure == ord(":")) > MAX_KEYS:
        return f"the body has more than {MAX_KEYS} keys"
    if np.count_nonzero(structure == ord(",")) > MAX_ITEMS:
        return f"the body has more than {MAX_ITEMS} values"
    opens = (structure == ord("[")) | (structure == ord("{"))
    closes = (structure == ord("]")) | (structure == ord("}"))
    levels = np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32)
    if levels.size and levels.max() > MAX_DEPTH:
        return f"the body is nested deeper than {MAX_DEPTH} levels"
    return None


def structure_of(body: bytes) -> np.ndarray:
    """The brackets, colons and commas outside of strings, uint8."""
    marks = without_escaped_backslashes(body).replace(b'\\"', b"").translate(None, NOT_STRUCTURE)
    found = np.frombuffer(marks, np.uint8)
    is_quote = found == ord('"')
    is_inside = np.cumsum(is_quote, dtype=np.uint8) & 1  # overflow keeps the lowest bit
    return found[(is_inside == 0) & ~is_quote]


def without_escaped_backslashes(body: bytes) -> bytes:
    """`body` without pairs of backslashes: each one that is left escapes the byte after it."""
    return body.replace(b"\\\\", b"")


def is_suspicious(body: bytes) -> bool:
    """Whether a value may be one that cannot be passed on."""
    if any(name in body for name in NO_JSON_NUMBERS):
        return True
    zeros = body.translate(DIGITS_TO_ZERO)
    if any(number in zeros for number in LARGE_NUMBERS):
        return True
    if b"\\ud" not in body and b"\\uD" not in body:
        return False
    return LONE_SURROGATE.search(without_escaped_backslashes(body)) is not None


def find_bad_values(parsed: Any) -> Iterator[tuple[str | None, str]]:
    """The fields with values that cannot be passed on, in no particular order. Walks without recursion."""
    pending: list[tuple[Any, Any, Any]] = [(None, None, parsed)]  # parent's entry, key or index, value
    while pending:
        entry = pending.pop()
        value = entry[2]
        if isinstance(value, dict):
            for key, each in value.items():
                if not is_encodable(key):
                    yield path(entry), f"a key is text that UTF-8 cannot encode: {ascii(key)[:80]}"
                pending.append((entry, key, each))
        elif isinstance(value, list):
            pending.extend((entry, index, each) for index, each in enumerate(value))
        elif (fault := FAULTS.get(type(value), no_fault)(value)) is not None:
            yield path(entry), fault


def no_fault(value: Any) -> None:
    return None


def fault_of_text(value: str) -> str | None:
    return None if is_encodable(value) else f"is text that UTF-8 cannot encode (a lone surrogate): {ascii(value)[:80]}"


def fault_of_integer(value: int) -> str | None:
    return None if MIN_INTEGER <= value <= MAX_INTEGER else "is an integer of more than 64 bits"


def fault_of_float(value: float) -> str | None:
    return None if math.isfinite(value) else "is not a finite number"


FAULTS: dict[type, Callable[[Any], str | None]] = {
    str: fault_of_text,
    int: fault_of_integer,
    float: fault_of_float,
}


def path(entry: tuple[Any, Any, Any]) -> str | None:
    """Dotted name of a field, as in vLLM's errors: `messages.0.content`. None for the body itself."""
    parts: list[str] = []
    while entry[0] is not None:
        parts.append(ascii(str(entry[1]))[1:-1][:80])
        entry = entry[0]
    return ".".join(reversed(parts)) or None
