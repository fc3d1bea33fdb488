"""Random JSON values: what a schema asks for, and what it does not."""

import random
from typing import Any

Schema = dict[str, Any]

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf")),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63) - 1, 10**30, 10**400),
)
TEXTS = (
    *("", " ", "a", "\0", "\ud800", "a\udfffb", "\u202e", "\U0001f469\u200d\U0001f680", "é" * 300, "x" * 20_000),
    *("{", '"', "\\", "\r\n\r\n", "null", "true", "0", "-1", "1e999", "NaN", "../../etc/passwd", "file:///etc/passwd"),
    *("http://127.0.0.1:1/", "data:image/png;base64,AAAA", "{{ 1/0 }}", "{% for i in range(9) %}x{% endfor %}", "(((("),
    *("root ::= root", "\\p{L}{9}", "<tool_call>", "<think>", "<|im_end|>", "text", "json_object", "auto", "required"),
)
MAX_DEPTH = 4


class Values:
    """Draws values from a seeded generator."""

    def __init__(self, rng: random.Random, components: dict[str, Schema]) -> None:
        """components: the document's `components.schemas`."""
        self._rng = rng
        self._components = components

    def resolved(self, schema: Schema) -> Schema:
        """The schema behind a reference; of alternatives, a random one."""
        for _ in range(8):
            if reference := schema.get("$ref"):
                schema = self._components.get(reference.rpartition("/")[2], {})
            elif options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
                schema = self._rng.choice(options)
            else:
                break
        return schema

    def weight(self, body: Schema | None) -> int:
        """How often a route with that body is chosen: those that ask a model, most often."""
        if body is None:
            return 1
        return 40 if "model" in self.resolved(body).get("properties", {}) else 4

    def of(self, schema: Schema, depth: int = 0) -> Any:
        """A value that fits the schema, roughly."""
        schema = self.resolved(schema)
        rng = self._rng
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        match schema.get("type"):
            case "string":
                return rng.choice(TEXTS[:10]) if rng.random() < 0.3 else rng.choice(("Hello", "user", "a b c"))
            case "integer":
                low = int(schema.get("minimum", 0))
                return rng.randint(low, max(low, int(schema.get("maximum", low + 8))))
            case "number":
                low = float(schema.get("minimum", 0))
                return round(rng.uniform(low, schema.get("maximum", low + 2)), 3)
            case "boolean":
                return rng.random() < 0.5
            case "array" if depth < MAX_DEPTH:
                return [self.of(schema.get("items", {}), depth + 1) for _ in range(rng.randint(1, 3))]
            case "object" if depth < MAX_DEPTH:
                return self._object(schema, depth)
            case "null" | "array" | "object":
                return None
            case _:
                return self.hostile(depth)

    def hostile(self, depth: int = 0) -> Any:
        """A value of any type: extreme numbers, odd texts, deep and wide structures."""
        rng = self._rng
        kind = rng.randrange(8 if depth < MAX_DEPTH else 4)
        match kind:
            case 0 | 1:
                return rng.choice(NUMBERS)
            case 2 | 3:
                return rng.choice(TEXTS)
            case 4:
                return rng.choice((None, True, False, [], {}))
            case 5:
                return [self.hostile(depth + 1) for _ in range(rng.randint(1, 4))]
            case 6:
                return {rng.choice(TEXTS[:13]): self.hostile(depth + 1) for _ in range(rng.randint(1, 4))}
            case _:
                return self._nested()

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        chosen = {name for name in properties if name in required or self._rng.random() < 0.2}
        return {name: self.of(properties[name], depth + 1) for name in sorted(chosen)}

    def _nested(self) -> Any:
        """An array or an object in itself, up to some thousand deep."""
        value: Any = 1
        is_array = self._rng.random() < 0.5
        for _ in range(self._rng.choice((3, 30, 300, 900))):
            value = [value] if is_array else {"type": "object", "properties": value}
        return value
