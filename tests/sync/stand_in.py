"""An HTTP server with a front end's control routes, in the test's own process."""

import json
import threading
from abc import abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from sync.closing import Closing

KEY = "replica-key"


class StandIn(Closing):
    """A server of control routes. `calls` lists the operations; `fail` maps one to (status, text)."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @abstractmethod
    def operation_of(self, method: str, url: SplitResult) -> str:
        """Name of the operation that a request asks for."""

    @abstractmethod
    def run(self, operation: str, url: SplitResult, headers: Any, body: bytes) -> dict[str, Any]:
        """Run the operation and return the answer's body."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Log nothing."""

            def _answer(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                operation = stand_in.operation_of(self.command, url)
                stand_in.calls.append(operation)
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    self._send(401, {"error": {"message": "no control key"}})
                elif operation in stand_in.fail:
                    status, text = stand_in.fail[operation]
                    self._send(status, {"error": {"message": text}})
                else:
                    try:
                        self._send(200, stand_in.run(operation, url, self.headers, body))
                    except Exception as error:
                        self._send(500, {"error": {"message": str(error)}})

            def _send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
