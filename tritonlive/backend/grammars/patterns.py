"""Regular expressions that a compiler takes for something else than they say.

xgrammar 0.2 reads `[\\p{L}]` as the letters p, {, L and }, and an escape that it does not know (`\\z`, `\\X`) as the
letter after it. These are refused here. Outside of brackets it refuses `\\p{…}` itself, and vLLM takes guidance, which
knows it. Unnecessary once xgrammar refuses them, too (mlc-ai/xgrammar, cpp/regex_converter.cc).
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from tritonlive.backend.vllm_seam.structured_outputs import StructuredOutputsParams

# Letters after a backslash that xgrammar knows; all other characters stand for themselves.
KNOWN = "dDwWsSbBfnrtv0cxu"
MISREAD = re.compile(r"\\(?P<escape>[A-Za-z1-9])|(?P<posix>\[:\^?[a-z]+:\])|\\.", re.DOTALL)


def misread_pattern(params: StructuredOutputsParams, backend: str) -> str | None:
    """What is wrong with a pattern of the regex or the JSON schema for that compiler; None if nothing is."""
    return next(filter(None, (misreading(pattern, backend) for pattern in patterns_of(params))), None)


def misreading(pattern: str, backend: str) -> str | None:
    """The first thing in `pattern` that the compiler misreads."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        return "its pattern ends within an escape sequence"  # guidance takes it for part of its own syntax
    for match in MISREAD.finditer(pattern) if backend == "xgrammar" else ():
        unknown = match["posix"] or (match["escape"] and match["escape"] not in KNOWN and match[0])
        if unknown:
            return f"its pattern has {unknown}, which the compiler does not know"
    return None


def patterns_of(params: StructuredOutputsParams) -> Iterator[str]:
    """The regex, or the patterns of the JSON schema."""
    if params.regex is not None:
        yield params.regex
    elif params.json is not None:
        yield from _patterns_in(json.loads(params.json) if isinstance(params.json, str) else params.json)


def _patterns_in(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for child in node:
            yield from _patterns_in(child)
    elif isinstance(node, dict):
        if isinstance(pattern := node.get("pattern"), str):
            yield pattern
        if isinstance(by_pattern := node.get("patternProperties"), dict):
            yield from by_pattern
        for child in node.values():
            yield from _patterns_in(child)
