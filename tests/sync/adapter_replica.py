"""A replica that takes adapters over HTTP, without a server: openai_frontend/routes/adapters.py over two dicts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import xxhash

from tests.sync.replica import KEY


class AdapterReplica:
    """`fail` maps an operation to (status, text); with `forgets` what was staged is gone at once."""

    def __init__(self) -> None:
        self.serving: dict[str, str] = {}
        self.staged: dict[str, str] = {}
        self.payload = b""
        self.config: dict[str, Any] = {}
        self.operations: list[str] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.forgets = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

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

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._run("adapters")

            def do_PUT(self) -> None:
                self._run("stage")

            def do_DELETE(self) -> None:
                self._run("remove")

            def do_POST(self) -> None:
                self._run(urlsplit(self.path).path.rpartition("/")[2])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

            def _run(self, operation: str) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                name = [*url.path.split("/"), ""][2]
                replica.operations.append(operation)
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    self._send(401, {"error": {"message": "no control key"}})
                elif operation in replica.fail:
                    status, text = replica.fail[operation]
                    self._send(status, {"error": {"message": text}})
                else:
                    self._send(200, getattr(replica, operation)(name, query, self.headers, body))

            def _send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
