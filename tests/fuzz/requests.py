"""Random requests: a valid one of some route, with one to four mutations."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from .values import TEXTS, Schema, Values

METHODS = ("get", "post", "put", "delete", "patch")
JSON = "application/json"


@dataclass(frozen=True)
class Route:
    """One operation of the OpenAPI document."""

    method: str
    path: str
    body: Schema | None
    parameters: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"


@dataclass(frozen=True)
class Request:
    """One request; `number` and the run's seed make it again."""

    number: int
    route: Route
    path: str
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str = JSON


def routes_of(document: dict[str, Any]) -> list[Route]:
    """Every operation of the document."""
    found = []
    for path, item in document["paths"].items():
        for method in (method for method in METHODS if method in item):
            content = item[method].get("requestBody", {}).get("content", {})
            body = content[JSON].get("schema", {}) if JSON in content else ({} if content else None)
            found.append(Route(method, path, body, item[method].get("parameters", [])))
    return found


class Requests:
    """Draws requests; the same seed and document give the same ones."""

    def __init__(self, document: dict[str, Any], model: str, seed: int) -> None:
        self._document = document
        self._model = model
        self._seed = seed
        self.routes = routes_of(document)

    def make(self, number: int) -> Request:
        """The request of that number. Each draws from a generator of its own, so that one can be repeated alone."""
        rng = random.Random(f"{self._seed}/{number}")  # noqa: S311 - no secret
        values = Values(rng, self._document.get("components", {}).get("schemas", {}))
        route = rng.choices(self.routes, [values.weight(each.body) for each in self.routes])[0]
        path, params = route.path, {}
        for parameter in route.parameters:
            value = values.of(parameter.get("schema", {})) if rng.random() < 0.7 else values.hostile()
            text = _printable(value)
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", text or "x")
            elif parameter["in"] == "query" and rng.random() < 0.5:
                params[parameter["name"]] = text
        if route.body is None:
            return Request(number, route, path, params)
        content = self._content(rng, values, route)
        content_type = JSON if rng.random() < 0.97 else rng.choice(("text/plain", "application/xml", "", "a/b;c=d"))
        return Request(number, route, path, params, content, content_type)

    def _content(self, rng: random.Random, values: Values, route: Route) -> bytes:
        """The body's bytes."""
        if rng.random() < 0.02:
            return rng.choice(
                (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":1}}', b"[" * 5000, b'{"model": "\xed\xa0\x80"}')
            )
        schema = values.resolved(route.body or {})
        body = self._valid(rng, values, schema)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 4))):
            self._mutate(rng, values, schema, body)
        return json.dumps(body).encode()

    def _valid(self, rng: random.Random, values: Values, schema: Schema) -> dict[str, Any]:
        """A body with the required fields, which asks for few tokens."""
        properties = schema.get("properties", {})
        body = {name: values.of(properties.get(name, {})) for name in schema.get("required", ())}
        usual = {
            "model": self._model,
            "prompt": "Hello there",
            "input": "Hello there",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4,
            "max_completion_tokens": 4,
            "max_output_tokens": 16,
            "stream": rng.random() < 0.3,
        }
        return body | {name: value for name, value in usual.items() if name in properties}

    @staticmethod
    def _mutate(rng: random.Random, values: Values, schema: Schema, body: dict[str, Any]) -> None:
        """Change the body: a field that fits its schema, one that does not, one that is missing, one too many."""
        properties = schema.get("properties", {})
        name = rng.choice(sorted(properties)) if properties else "x"
        kind = rng.random()
        if kind < 0.4:
            body[name] = values.of(properties.get(name, {}))
        elif kind < 0.8:
            body[name] = values.hostile()
        elif kind < 0.9 and body:
            body.pop(rng.choice(sorted(body)))
        else:
            body[rng.choice(TEXTS)] = values.hostile()


def _printable(value: Any) -> str:
    """A parameter of a URL: no surrogates, which no client can send, and not too long."""
    return str(value).encode(errors="replace").decode()[:2000]
