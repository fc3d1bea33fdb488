"""The stack of a soak: `tritonlive serve` as an operator runs it, so that its own restarts are what brings it back."""

import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from bench.soak.samples import processes
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.ports import pick_free
from tritonlive.launch.tiny_model import tiny_model
from tritonlive.wire.environment import CONTROL_KEY_VARIABLE

MODEL = "soak"
START_TIMEOUT_S = 400.0
RECOVERY_TIMEOUT_S = 240.0
POLL_S = 0.5
STOP_TIMEOUT_S = 90.0
ARGUMENTS = (
    *("--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--kv-cache-space", "1", "--max-logprobs", "20"),
    *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2"),
)
OPTIONS = ("--port", "--triton-http-port", "--triton-grpc-port", "--triton-metrics-port")


class StackDiedError(RuntimeError):
    """`tritonlive serve` has ended."""


class SoakStack:
    """A running `tritonlive serve`."""

    def __init__(self, folder: Path, extra: list[str], say: Callable[[str], None]) -> None:
        """folder: for its logs, its output and core dumps. extra: further arguments of `serve`."""
        self.model_dir = tiny_model(default_cache_dir())
        self.control_key = secrets.token_urlsafe(24)
        ports = pick_free("127.0.0.1", len(OPTIONS))
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.log_dir = folder / "logs"
        self._output = folder / "serve.txt"
        self._folder = folder
        self._command = [
            *(sys.executable, "-m", "tritonlive", "serve", "--model", str(self.model_dir), *ARGUMENTS),
            *(f"{option}={port}" for option, port in zip(OPTIONS, ports, strict=True)),
            *("--log-dir", str(self.log_dir), *extra),
        ]
        self._say = say

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # a child inherits it: core dumps on
        try:
            with self._output.open("wb") as output:
                self._serve = subprocess.Popen(
                    self._command,
                    cwd=self._folder,
                    env=_environment(self.control_key),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        try:
            self._say("starting the stack …")
            if self.wait_for_answer(START_TIMEOUT_S) is None:
                raise StackDiedError(f"not ready in {START_TIMEOUT_S:.0f} s: {self.tail()}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        members = [process for _, process in self._processes()]
        self._serve.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._serve.wait(STOP_TIMEOUT_S)
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._serve.wait()

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._serve.pid

    def check(self) -> None:
        """Raise StackDiedError if the launcher has ended."""
        if self._serve.poll() is not None:
            raise StackDiedError(f"`serve` ended with {self._serve.returncode}: {self.tail()}")

    def kill(self, role: str) -> bool:
        """SIGKILL the first process of that role; False if there is none."""
        for found, process in self._processes():
            if found == role:
                process.kill()
                return True
        return False

    def wait_for_answer(
        self, timeout_s: float = RECOVERY_TIMEOUT_S, look: Callable[[], None] = lambda: None
    ) -> float | None:
        """Seconds until a completion is answered; None if it is not in time. Calls `look` between attempts.

        Raises StackDiedError if the launcher has ended.
        """
        began = time.monotonic()
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 1}
        while time.monotonic() - began < timeout_s:
            self.check()
            look()
            with suppress(httpx.HTTPError):
                answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=20)
                if answer.status_code == httpx.codes.OK:
                    return time.monotonic() - began
            time.sleep(POLL_S)
        return None

    def tail(self) -> str:
        """The last lines that `serve` has printed."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-12:])

    def crashes(self) -> list[str]:
        """Core dumps, and lines of the kernel's log about our processes' segmentation faults."""
        cores = [f"core dump: {path.name}" for path in self._folder.glob("core*")]
        kernel = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
        names = ("tritonserver", "triton_python", "EngineCore", "python")
        return cores + [
            line for line in kernel.splitlines() if "segfault" in line and any(name in line for name in names)
        ]

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        try:
            return list(processes(self._serve.pid))
        except psutil.NoSuchProcess:
            return []


def _environment(control_key: str) -> dict[str, str]:
    return os.environ | {CONTROL_KEY_VARIABLE: control_key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
