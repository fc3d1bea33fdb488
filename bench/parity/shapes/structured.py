"""Structured outputs: response formats, and vLLM's regex, choice, grammar and JSON."""

from typing import Any

from bench.parity.shape import Shape, both_ways, chat, completion

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
ASK = "Describe Ann, who is 30 and likes tea, as JSON."
GRAMMAR = 'root ::= "SELECT " column " FROM t"\ncolumn ::= "a" | "b"'


def shapes() -> list[Shape]:
    """Every structured request that must succeed."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    strict = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<p>", "schema": PERSON, "end": "</p>"}],
        "triggers": ["<p>"],
    }
    return [
        *both_ways(chat("structured/json-schema", ASK, response_format=schema, max_tokens=96, checks=("is_person",))),
        chat("structured/json-schema-strict", ASK, response_format=strict, max_tokens=96, checks=("is_person",)),
        chat("structured/json-object", ASK, response_format={"type": "json_object"}, max_tokens=24),
        chat("structured/text", response_format={"type": "text"}),
        chat("structured/structural-tag", ASK, response_format=tag, max_tokens=24),
        *both_ways(
            chat("structured/regex", "A date?", structured_outputs={"regex": r"\d{4}-\d{2}-\d{2}"}, checks=("is_date",))
        ),
        *both_ways(chat("structured/choice", "Sky colour?", structured_outputs={"choice": ["red", "blue", "green"]})),
        chat("structured/grammar", "SQL, please.", structured_outputs={"grammar": GRAMMAR}),
        chat("structured/json", ASK, structured_outputs={"json": PERSON}, max_tokens=96, checks=("is_person",)),
        chat(
            "structured/json-n2", ASK, structured_outputs={"json": PERSON}, max_tokens=96, n=2, temperature=0.7, seed=5
        ),
        chat(
            "structured/json-logprobs",
            ASK,
            structured_outputs={"json": PERSON},
            logprobs=True,
            top_logprobs=2,
            max_tokens=20,
        ),
        completion("structured/json-schema", ASK, response_format=schema, max_tokens=96),
        completion(
            "structured/regex", "The date is ", structured_outputs={"regex": r"\d{4}-\d{2}-\d{2}"}, max_tokens=16
        ),
        completion(
            "structured/choice", "The sky is ", structured_outputs={"choice": ["red", "blue", "green"]}, stream=True
        ),
        completion("structured/grammar", "SQL: ", structured_outputs={"grammar": GRAMMAR}, max_tokens=16),
    ]
