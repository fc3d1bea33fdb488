"""A managed process: its own session, its output in a file, and a stop that leaves no process behind."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from .errors import ProcessDiedError

POLL_S = 0.05


class ManagedProcess:
    """A command started in a new session.

    The session makes the stop complete. It survives the death of its leader, and every process that the command starts
    stays in it: vLLM's engine and workers, for example, which a SIGKILLed tritonserver leaves behind.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the command, which is also its session's id."""
        if self._popen is None:
            raise ProcessDiedError(f"{self.name} has not been started")
        return self._popen.pid

    def start(self) -> None:
        """Start the command; its output replaces the log file."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # A SIGKILLed launcher cannot stop its processes; the kernel does it then.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        with self.log_path.open("wb") as log:
            self._popen = subprocess.Popen(
                [*guard, *self.command],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the command still runs; its children may outlive it."""
        return self._popen is not None and self._popen.poll() is None

    def check(self) -> None:
        """Raise ProcessDiedError with the exit status and the last log lines, if the command has ended."""
        if self._popen is None or (status := self._popen.poll()) is None:
            return
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise ProcessDiedError(f"{self.name} ended ({how}). Last lines of {self.log_path}:\n{self.log_tail(25)}")

    def log_tail(self, lines: int) -> str:
        """The last `lines` lines of the log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 400 * lines))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def log_contains(self, text: str) -> bool:
        """Whether the command has printed `text` by now."""
        return self.log_path.is_file() and text.encode() in self.log_path.read_bytes()

    def members(self) -> list[psutil.Process]:
        """Every live process of the session, and its descendants."""
        if self._popen is None:
            return []
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._popen.pid:
                    for member in (process, *process.children(recursive=True)):
                        if member.status() != psutil.STATUS_ZOMBIE:
                            found[member.pid] = member
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        return list(found.values())

    def stop(self, timeout_s: float) -> None:
        """End the command and its processes: SIGTERM to the command, after `timeout_s` SIGKILL to all that are left."""
        if self._popen is None:
            return
        deadline = time.monotonic() + timeout_s
        if self._popen.poll() is None:
            self._popen.terminate()
            while self._popen.poll() is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        # Processes that the command left behind get no time to end.
        orphans = self.members()
        for orphan in orphans:
            self._signal(orphan, signal.SIGTERM)
        psutil.wait_procs(orphans, timeout=min(3.0, max(0.5, deadline - time.monotonic())))
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL to every process of the session until none is left."""
        # A resource tracker ends by itself after the processes it serves, and removes the shared memory they left.
        rest = self.members()
        self._kill([process for process in rest if not _is_resource_tracker(process)])
        psutil.wait_procs(rest, timeout=2)
        while rest := self.members():
            self._kill(rest)
        if self._popen is not None:
            self._popen.wait()

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            self._signal(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=1)

    @staticmethod
    def _signal(process: psutil.Process, number: signal.Signals) -> None:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's resource tracker, which removes what killed processes left."""
    try:
        return any("multiprocessing.resource_tracker" in argument for argument in process.cmdline())
    except psutil.NoSuchProcess:
        return False
