"""Schemas too deep to be encoded.

vLLM checks the nesting when it validates a grammar. The model does that here, and a schema that nests thousands of
levels deep does not reach it: copying or encoding it fails with RecursionError.
"""

from typing import Any

from openai_frontend.vllm_seam import check_json_nesting


def check_nesting(params: Any) -> None:
    """Raises VLLMValidationError for SamplingParams whose JSON schema nests too deeply."""
    grammar = getattr(params, "structured_outputs", None)
    if grammar is not None and grammar.json is not None:
        check_json_nesting(grammar.json)
