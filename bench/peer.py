"""Runs vLLM's own OpenAI server as a child process. Benchmarks and parity runs compare tritonlive with it."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from bench.process_kinds import VLLM_RS
from tritonlive.launch import ports, ready
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.errors import ReadyTimeoutError
from tritonlive.launch.process import ManagedProcess
from tritonlive.launch.rust_binary import PATH_VARIABLE

ENTRY_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""Module of `vllm serve`. The `vllm` command needs a distribution named `vllm`; the CPU build has another name."""
RUST_ENTRY_MODULE = "bench.rust_peer"
"""The same with vLLM's Rust front end."""

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""The launcher's defaults, so that both servers have the same. The caller's environment takes precedence."""

STOP_S = 30.0


class VllmServe:
    """Runs `vllm serve` while a `with` block lasts. It is healthy on entry; no process is left on exit.

    Args:
        model: directory of the model, or its hub name.
        args: further arguments of `vllm serve`.
        served_name: served model name.
        rust_binary: vLLM's Rust front end (`vllm-rs`), which then serves HTTP; None: vLLM's Python API server.
        start_timeout_s: time limit until `/health` succeeds.

    Raises:
        LaunchError: on entry, if the server dies or is not healthy in time; the message has the end of its log.
    """

    def __init__(
        self,
        model: Path | str,
        args: tuple[str, ...] = (),
        *,
        served_name: str,
        rust_binary: Path | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        (port,) = ports.pick_free("127.0.0.1", 1)
        self.url = self.rollouts_url = f"http://127.0.0.1:{port}"
        self.start_timeout_s = start_timeout_s
        module = RUST_ENTRY_MODULE if rust_binary else ENTRY_MODULE
        command = [
            *(sys.executable, "-m", module, "--model", str(model), "--served-model-name", served_name),
            *("--host", "127.0.0.1", "--port", str(port), *args),
        ]
        log_path = default_cache_dir() / "logs" / f"vllm-serve-{port}.log"
        env = ENVIRONMENT | os.environ
        if rust_binary:
            env |= {"VLLM_USE_RUST_FRONTEND": "1", PATH_VARIABLE: str(rust_binary)}
        self._has_rust = rust_binary is not None
        self._process = ManagedProcess("vllm serve", command, env, log_path)

    def processes(self) -> list[psutil.Process]:
        """The front end, the engine core and the workers."""
        return self._process.members()

    def frontend_processes(self) -> list[psutil.Process]:
        """The API server or `vllm-rs` alone."""
        if self._has_rust:
            return [process for process in self.processes() if process.name() == VLLM_RS]
        return [process for process in self.processes() if process.pid == self._process.pid]

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self._wait_until_healthy()
        except BaseException:
            self._process.stop(STOP_S)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop(STOP_S)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        with httpx.Client(timeout=5.0) as client:
            while not ready.is_ok(client, f"{self.url}/health"):
                self._process.check()
                if time.monotonic() > deadline:
                    raise ReadyTimeoutError(
                        f"vllm serve was not healthy within {self.start_timeout_s:.0f} s. "
                        f"Last lines of {self._process.log_path}:\n{self._process.log_tail(25)}"
                    )
                time.sleep(0.1)
