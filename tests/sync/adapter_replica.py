"""A replica that takes adapters over HTTP, without a server: openai_frontend/routes/adapters.py over two dicts."""

import json
from typing import Any
from urllib.parse import SplitResult, parse_qs

import xxhash

from tests.sync.stand_in import StandIn

METHODS = {"GET": "adapters", "PUT": "stage", "DELETE": "remove"}


class AdapterReplica(StandIn):
    """A replica's adapters. With `forgets` it drops staged versions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.serving: dict[str, str] = {}
        self.staged: dict[str, str] = {}
        self.payload = b""
        self.config: dict[str, Any] = {}
        self.forgets = False

    def operation_of(self, method: str, url: SplitResult) -> str:
        return METHODS.get(method) or url.path.rpartition("/")[2]

    def run(self, operation: str, url: SplitResult, headers: Any, body: bytes) -> dict[str, Any]:
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        return getattr(self, operation)([*url.path.split("/"), ""][2], query, headers, body)

    def stage(self, name: str, query: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
        assert query["digest"] == xxhash.xxh3_64_hexdigest(body)
        assert query["stage"] == "true"
        self.payload, self.config = body, json.loads(headers["x-adapter-config"])
        if not self.forgets:
            self.staged[name] = query["version"]
        return {"tensors": 2, "bytes": len(body), "is_changed": True}

    def activate(self, name: str, query: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
        self.serving[name] = self.staged.pop(name)
        return {}

    def discard(self, name: str, query: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
        self.staged.pop(name, None)
        return {}

    def remove(self, name: str, query: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
        del self.serving[name]
        return {}

    def adapters(self, name: str, query: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
        listed = [
            {"name": name, "version": version, "state": state, "bytes": 1, "tensors": 2, "requests": 0}
            for state, versions in (("serving", self.serving), ("staged", self.staged))
            for name, version in versions.items()
        ]
        return {"adapters": listed}
