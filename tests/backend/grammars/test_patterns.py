"""Patterns that a compiler would take for something else."""

import json

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tritonlive.backend.grammars.patterns import misread_pattern

MISREAD = [r"[\p{L}]+", r"[^\p{L}]", "[[:alpha:]]+", "[[:^digit:]]", r"a\z", r"\A", r"\X", r"(a)\1", r"\\\z"]
FINE = [r"[\d\w]+\s", r"\\z", r"\x41é", r"a\.b\-c", "[:a-z]", r"\[:alpha:\\]", r"\n\t", r"\{\}", "(Paris|London)"]


@pytest.mark.parametrize("pattern", MISREAD)
def test_what_xgrammar_misreads_is_named(pattern: str) -> None:
    assert "does not know" in str(misread_pattern(StructuredOutputsParams(regex=pattern), "xgrammar"))
    assert misread_pattern(StructuredOutputsParams(regex=pattern), "guidance") is None


@pytest.mark.parametrize("pattern", FINE)
def test_what_it_reads_rightly_passes(pattern: str) -> None:
    assert misread_pattern(StructuredOutputsParams(regex=pattern), "xgrammar") is None


@pytest.mark.parametrize("backend", ["xgrammar", "guidance", "outlines"])
def test_an_unfinished_escape_is_refused_for_every_compiler(backend: str) -> None:
    assert (
        misread_pattern(StructuredOutputsParams(regex="a\\"), backend) == "its pattern ends within an escape sequence"
    )
    assert misread_pattern(StructuredOutputsParams(regex="a\\\\"), backend) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"items": [{"type": "string", "pattern": r"[\p{L}]"}]},
        {"properties": {"a": {"patternProperties": {r"[\p{L}]": {}}}}},
    ],
)
def test_patterns_in_a_schema_are_found(schema: dict[str, object]) -> None:
    assert misread_pattern(StructuredOutputsParams(json=schema), "xgrammar") is not None
    assert misread_pattern(StructuredOutputsParams(json=json.dumps(schema)), "xgrammar") is not None
