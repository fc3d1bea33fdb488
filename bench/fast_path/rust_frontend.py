"""`python -m bench.fast_path.rust_frontend URL BINARY`: the Rust port alone, without the FastAPI front end beside it.

Every question is answered with its port. The bridge and `vllm-rs` are children of this process.
"""

import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.child import serve
from openai_frontend import engine_info
from openai_frontend.options import Options
from openai_frontend.rust.port import RustAddress, RustPort

HOST = "127.0.0.1"
START_S = 300.0
DRAIN_S = 1.0


def free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def wait_healthy(port: int, rust: RustPort) -> None:
    """Raises RuntimeError if the port is not healthy in time."""
    deadline = time.monotonic() + START_S
    while not rust.has_failed and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://{HOST}:{port}/health", timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the Rust port did not become healthy; its log says why")


def start(stack: ExitStack, url: str, binary: Path) -> Callable[[dict[str, Any]], dict[str, int]]:
    """Start the Rust port, which stops with `stack`; returns the function that answers questions."""
    Options([url], [], 1, engine_info.wait([url], 60, lambda text: None)).to_environment()
    port = free_port()
    rust = RustPort(RustAddress(HOST, port, binary), DRAIN_S, lambda text: print(text, file=sys.stderr))
    wait_healthy(port, stack.enter_context(rust))
    return lambda question: {"port": port}


if __name__ == "__main__":
    with ExitStack() as stack:
        serve(lambda: start(stack, sys.argv[1], Path(sys.argv[2])))
