"""Both ends of a helper process that reads one line of JSON per question and writes one per answer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

STOP_S = 5.0
LOG_LINES = 25


class ChildError(RuntimeError):
    """The helper process ended before it answered."""


class Child:
    """Runs a module as a process while a `with` block lasts. The module calls `serve`.

    Args:
        module: name of the module for `python -m`.
        arguments: its command line.
        env: defaults; variables of the inherited environment take precedence.
        log_path: file for its output other than answers.
    """

    def __init__(self, module: str, arguments: list[str], env: Mapping[str, str], log_path: Path) -> None:
        self.module = module
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=dict(env) | os.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, question: dict[str, Any]) -> Any:
        """Ask a question and return the answer. Raises ChildError if the process has ended."""
        self.send(question)
        return self.receive()

    def send(self, question: dict[str, Any]) -> None:
        """Ask a question; `receive` returns its answer later."""
        if self._popen.stdin is None or self._popen.poll() is not None:
            raise self._ended()
        self._popen.stdin.write(json.dumps(question) + "\n")
        self._popen.stdin.flush()

    def receive(self) -> Any:
        """Wait for an answer. Raises ChildError if the process ends instead."""
        line = self._popen.stdout.readline() if self._popen.stdout else ""
        if not line:
            raise self._ended()
        return json.loads(line)

    def processes(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        try:
            process = psutil.Process(self._popen.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        members = self.processes()
        if self._popen.stdin is not None:
            self._popen.stdin.close()  # the process ends when its standard input does
        for end in (psutil.Process.terminate, psutil.Process.kill):
            _, members = psutil.wait_procs(members, timeout=STOP_S)
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    end(process)
        self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def _ended(self) -> ChildError:
        lines = self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return ChildError("\n".join([f"{self.module} ended with status {self._popen.wait()}. Its last lines:", *lines]))


def serve(start: Callable[[], Callable[[dict[str, Any]], Any]]) -> None:
    """Serve questions in the helper process until its input ends. `start` returns the function that answers them."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps the output of libraries apart from the answers
        answer = start()
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()
