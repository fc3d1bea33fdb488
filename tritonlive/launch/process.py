"""A managed process: its own session, its output in a file, and a stop that leaves no process behind."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tritonlive.guarded_command import ends_with_parent

from . import root_cause
from .errors import ProcessDiedError

POLL_S = 0.05
CAUSE_LINES = 2000
"""How much of a log's end is searched for the cause of a death."""
# What the processes create is for their user alone. (Triton's shared memory is not: see backend/private_files.py.)
PRIVATE_UMASK = 0o077


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

    def start(self, *, keeps_log: bool = False) -> None:
        """Start the command; its output replaces the log file. keeps_log: the file so far is kept as *.previous.log."""
        if keeps_log and self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(f".previous{self.log_path.suffix}"))
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # A SIGKILLed launcher cannot stop its processes; the kernel does it then.
        with self.log_path.open("wb") as log:
            os.fchmod(log.fileno(), 0o600)
            self._popen = subprocess.Popen(
                ends_with_parent(self.command),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=PRIVATE_UMASK,
            )

    @property
    def is_running(self) -> bool:
        """Whether the command still runs; its children may outlive it."""
        return self._popen is not None and self._popen.poll() is None

    def failure(self) -> str | None:
        """How the command has ended; None if it has not."""
        if self._popen is None or (status := self._popen.poll()) is None:
            return None
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"{self.name} ended ({how})"

    def check(self) -> None:
        """Raise ProcessDiedError with the exit status and the cause, if the command has ended."""
        if (failure := self.failure()) is not None:
            raise self.died(failure)

    def died(self, failure: str) -> ProcessDiedError:
        """The error for `failure`, with the cause that the log names; where it names none, with its last lines."""
        if cause := root_cause.find(self.log_tail(CAUSE_LINES)):
            return ProcessDiedError(f"{cause}\n{failure}; its log is {self.log_path}")
        return ProcessDiedError(f"{failure}. Last lines of {self.log_path}:\n{self.log_tail(25)}")

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
