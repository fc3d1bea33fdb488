"""The Rust port of a front end: the bridge's process, kept running beside the FastAPI one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from openai_frontend.rust.exit_status import CANNOT_SERVE
from tritonlive.backoff import Backoff
from tritonlive.guarded_command import ends_with_parent

STABLE_S, LARGEST_DELAY_S = 60.0, 5.0
STOP_MARGIN_S = 8.0
"""Time for a stop beside the time for open requests."""


@dataclass(frozen=True)
class RustAddress:
    """Where the Rust front end serves, and which binary it is."""

    host: str
    port: int
    binary: Path


class RustPort:
    """Runs the bridge while the context lasts. If it cannot be started at all, the front end is told to stop."""

    def __init__(self, address: RustAddress, drain_s: float, say: Callable[[str], None]) -> None:
        """The process reads the front end's Options from the environment."""
        python = (sys.executable, "-P", "-m")  # -P: modules in the working directory are not ours
        self._bootstrap_command = [*python, "openai_frontend.rust.bootstrap"]
        self._command = [
            *(*python, "openai_frontend.rust"),
            *("--host", address.host, "--port", str(address.port), "--binary", str(address.binary)),
        ]
        # The files of metrics in that folder are added up: this process has none of vLLM's.
        self._environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        self._drain_s = drain_s
        self._say = say
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="rust-port", daemon=True)
        self.has_failed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        deadline = time.monotonic() + self._drain_s + STOP_MARGIN_S
        while self._thread.is_alive():
            if self._process is not None:  # perhaps one that has only just been started
                self._process.send_signal(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            self._thread.join(0.2)

    def _run(self) -> None:
        # The thread stays while the process runs: the kernel ends the process when its starter has ended.
        if (bootstrap := self._bootstrap()) is not None:
            self._keep_running(bootstrap)
        if not self._stopping.is_set():
            self._say("the Rust port cannot serve, so this front end stops")
            self.has_failed = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _bootstrap(self) -> bytes | None:
        """What each process is told; made once, because vLLM's import takes ten seconds. None if vLLM cannot."""
        with self._start(self._bootstrap_command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            made, _ = process.communicate()
        return made if process.returncode == 0 else None

    def _keep_running(self, bootstrap: bytes) -> None:
        """Returns when it is to stop, or when the first processes say that they cannot serve.

        Later that has another reason, like a full disk, which may pass; and the FastAPI port serves meanwhile.
        """
        backoff = Backoff(STABLE_S, LARGEST_DELAY_S)
        while True:
            backoff.began()
            process = self._start(self._command, stdin=subprocess.PIPE)
            with contextlib.suppress(BrokenPipeError):  # it has ended
                process.communicate(bootstrap)
            status = process.wait()
            if self._stopping.is_set():
                return
            self._say(f"the Rust port's process ended with status {status}")
            delay_s = backoff.failed()
            if status == CANNOT_SERVE and not backoff.has_been_stable:
                return
            if self._stopping.wait(delay_s):
                return

    def _start(self, command: list[str], stdin: int, stdout: int | None = None) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(ends_with_parent(command), env=self._environment, stdin=stdin, stdout=stdout)
        return self._process
