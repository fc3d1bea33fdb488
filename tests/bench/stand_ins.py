"""A load without a system, a server without a model, and scripts: for tests of the code around a measurement."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from bench.goals import Goal
from bench.measure import Figures, Side
from bench.systems import Systems


def script(path: Path, text: str) -> Path:
    """Write a program that stands in for a load generator."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class FixedSide:
    """A side whose run reports one second, or fails."""

    name: str
    error: BaseException | None

    def processes(self) -> list[psutil.Process]:
        return []

    def warm_up(self) -> None:
        """Do nothing."""

    def prepare(self) -> None:
        """Do nothing."""

    def run(self, seed: int) -> Figures:
        if self.error is not None:
            raise self.error
        return {"seconds": 1.0}


@dataclass(frozen=True)
class FixedLoad:
    """A load of two such sides."""

    name: str
    goals: tuple[Goal, ...]
    error: BaseException | None

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        return FixedSide("ours", self.error), FixedSide("theirs", self.error)


class LocalServer:
    """A server for the harness, whose only process is this one."""

    def __init__(self, url: str) -> None:
        self.url = self.rollouts_url = url
        self.grpc_url = "a:8001"

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process()]

    def frontend_processes(self) -> list[psutil.Process]:
        return self.processes()


@contextmanager
def local_server(answer: Callable[[dict[str, Any]], tuple[int, bytes]]) -> Iterator[LocalServer]:
    """A server on a real socket. `answer` returns status and content for the body of a POST."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, content = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield LocalServer(f"http://127.0.0.1:{http.server_port}")
        http.shutdown()
