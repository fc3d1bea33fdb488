"""Limits of grammars: size and shape, which are checked at once, and time and memory, which the kernel enforces."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tritonlive.backend.tensors import BadTensor
from tritonlive.backend.vllm_seam.structured_outputs import StructuredOutputsParams
from tritonlive.wire.environment import GRAMMAR_VARIABLES
from tritonlive.wire.limits import GRAMMAR_DEFAULTS, GrammarDefaults

FIELD = "structured_outputs"
MIB = 2**20
JSON_KINDS = ("json", "structural_tag", "choice")


@dataclass(frozen=True)
class GrammarLimits(GrammarDefaults):
    """The operator's limits."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Raises ValueError with the variable's name for a value that is not a positive number."""
        values: dict[str, Any] = {}
        for name, variable in GRAMMAR_VARIABLES.items():
            if text := environment.get(variable):
                kind = type(getattr(GRAMMAR_DEFAULTS, name))
                try:
                    values[name] = kind(text)
                except ValueError:
                    raise ValueError(f"{variable}={text}: expected a number") from None
                if not 0 < values[name] < float("inf"):
                    raise ValueError(f"{variable}={text}: expected a positive number")
        return cls(**values)

    def check(self, params: StructuredOutputsParams) -> str:
        """Check size and shape. Returns the grammar's text; `json` becomes text, too. Raises BadTensor."""
        if isinstance(params.json, dict):
            try:
                params.json = json.dumps(params.json)
            except (RecursionError, ValueError, TypeError) as error:
                raise BadTensor(FIELD, f"json: is not a JSON schema: {error}") from None
        name, text = written(params)
        if len(text.encode(errors="replace")) > self.max_bytes:
            raise BadTensor(FIELD, f"{name}: is longer than {self.max_bytes} bytes (--grammar-max-bytes)")
        # Each value follows a comma, a colon or a bracket. So most texts need no exact count.
        is_suspect = name in JSON_KINDS and sum(map(text.count, ",:[")) > self.max_values
        if is_suspect and number_of_values(parse(name, text)) > self.max_values:
            raise BadTensor(FIELD, f"{name}: has more than {self.max_values} values (--grammar-max-values)")
        return f"{name} {text}"


def written(params: StructuredOutputsParams) -> tuple[str, str]:
    """Name and text of the one kind of grammar that is set."""
    for name in ("json", "regex", "grammar", "structural_tag"):
        if (value := getattr(params, name)) is not None:
            return name, str(value)
    return ("choice", json.dumps(params.choice)) if params.choice is not None else ("json_object", "")


def parse(name: str, text: str) -> Any:
    """Raises BadTensor."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTensor(FIELD, f"{name}: is not JSON: {error}") from None


def number_of_values(root: Any) -> int:
    """Values in objects and lists at all depths."""
    count, nodes = 0, [root]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict | list):
            children = node.values() if isinstance(node, dict) else node
            count += len(children)
            nodes += children
    return count
