"""A stack that `tritonlive serve` runs and restarts, its processes, and clients whose streams must not hang."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from sync.control.connect import connect
from sync.control.target import Target
from tests.stack.conftest import bearer, read_metric, wait_until
from tritonlive.launch.ports import pick_free
from tritonlive.wire.machine import STUB_NAME

API_KEY, CONTROL_KEY = "test-inference-key", "test-control-key"
START_S = 240.0
# A restart of tritonserver and of the engine in it takes 30 s on two idle cores.
RECOVERY_S = 180.0
LONG = {"model": "tiny", "prompt": "Once upon a time", "ignore_eos": True}


class Served:
    """`tritonlive serve` as a process."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *arguments: str,
        within: tuple[str, ...] = (),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """within: a command that runs the one behind it, and gives its place to that."""
        names = ("--port", "--triton-http-port", "--triton-grpc-port", "--triton-metrics-port")
        ports = pick_free("127.0.0.1", len(names))
        self.frontend_url = f"http://127.0.0.1:{ports[0]}"
        self.grpc_url, self.metrics_url = f"127.0.0.1:{ports[2]}", f"http://127.0.0.1:{ports[3]}/metrics"
        self.said = folder / "said.txt"
        self.logs = folder / "logs"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [
                    *within,
                    *(sys.executable, "-m", "tritonlive", "serve", "--model", str(model)),
                    *("--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"),
                    *("--max-model-len", "2048", "--kv-cache-space", "1", "--log-dir", str(self.logs)),
                    *(f"{name}={port}" for name, port in zip(names, ports, strict=True)),
                    *arguments,
                ],
                env=os.environ | {"TRITONLIVE_API_KEY": API_KEY, "TRITONLIVE_CONTROL_KEY": CONTROL_KEY} | dict(env),
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    @property
    def triton(self) -> psutil.Process:
        return child("tritonserver", psutil.Process(self.process.pid))

    @property
    def frontend(self) -> psutil.Process:
        return child("openai_frontend", psutil.Process(self.process.pid))

    @property
    def stub(self) -> psutil.Process:
        """The process of the model with the engine; those of the other models have names of their own."""
        (found,) = [each for each in self.triton.children() if each.name() == STUB_NAME]
        return found

    @property
    def engine(self) -> psutil.Process:
        return child("EngineCore", self.stub)

    def processes(self) -> list[psutil.Process]:
        """All processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_ready(self) -> None:
        wait_until(lambda: self.process.poll() is not None or self.is_healthy(), START_S)
        assert self.process.poll() is None, self.said.read_text()

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.frontend_url}/health", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def complete(self, **parameters: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0} | parameters
        return httpx.post(f"{self.frontend_url}/v1/completions", json=body, headers=bearer(API_KEY), timeout=60)

    def status(self) -> dict[str, Any]:
        """What the model in Triton says of itself."""
        with connect(Target.parse(f"grpc://{self.grpc_url}", CONTROL_KEY), timeout=60) as client:
            return client.status()

    def num_running(self) -> float:
        """Requests in the engine, by Triton's metrics."""
        return read_metric(self.metrics_url, "vllm:num_requests_running")

    def is_triton_ready(self) -> bool:
        """Whether Triton says that it is ready."""
        try:
            with triton.InferenceServerClient(self.grpc_url) as client:
                return client.is_server_ready(client_timeout=5)
        except InferenceServerException:
            return False

    def count(self, line: str) -> int:
        """How often it has said so."""
        return self.said.read_text().count(line)

    def stop(self, limit_s: float = 60.0) -> int:
        """Ctrl-C. Returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(limit_s)

    def close(self) -> None:
        """End what a failed test has left."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def child(name: str, parent: psutil.Process) -> psutil.Process:
    """The child with this name, or with it at the start of its command."""
    (found,) = [each for each in parent.children() if name in " ".join([each.name(), *each.cmdline()[:6]])]
    return found


def is_told(last: str) -> bool:
    """Whether this is an error event, or an answer with an error instead of a stream."""
    return '"error"' in last


def is_finished(last: str) -> bool:
    """Whether this is the last chunk of a whole answer."""
    return '"finish_reason":"length"' in last


class Streams:
    """Clients in the middle of long answers. `outcomes` holds what each saw in the end, and when."""

    def __init__(self, url: str, num_streams: int = 4, max_tokens: int = 1900) -> None:
        self.num_begun = 0
        self._body = LONG | {"max_tokens": max_tokens, "stream": True}
        self.outcomes: list[tuple[float, str]] = []
        self._url = url
        self._clients = [threading.Thread(target=self._read) for _ in range(num_streams)]

    def _read(self) -> None:
        last, has_begun = "nothing", False
        try:
            with httpx.stream(
                "POST", f"{self._url}/v1/completions", json=self._body, headers=bearer(API_KEY), timeout=60
            ) as answer:
                for line in filter(None, answer.iter_lines()):
                    last = line if line != "data: [DONE]" else last
                    if not has_begun:
                        self.num_begun, has_begun = self.num_begun + 1, True
        except httpx.HTTPError as error:
            last = f"{type(error).__name__} after {last}"
        self.outcomes.append((time.monotonic(), last))

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        wait_until(lambda: self.num_begun == len(self._clients), 60)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.join(90)

    def wait(self, limit_s: float) -> list[str]:
        """What the clients saw last, once all have ended."""
        wait_until(lambda: len(self.outcomes) == len(self._clients), limit_s)
        return [last for _, last in self.outcomes]


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float:
    began = time.monotonic()
    wait_until(condition, limit_s)
    return time.monotonic() - began
