"""Finds the Triton servers and engines that tests start, so that a unit test which starts one fails.

Starting either takes seconds, so a look twice a second misses none, also when a test's own child starts it.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

VARIABLE = "TRITONLIVE_TEST_PROCESS"
"""Variable that all children of a test process inherit. Its value identifies the process of pytest-xdist."""
POLL_S = 0.5
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel rounds the time at which a process was created down to this."""
SERVER = "tritonserver"
ENGINE_TITLE = "VLLM::EngineCore"


@dataclass(frozen=True)
class Test:
    """A test, when it began (seconds since boot), and whether it may start servers and engines."""

    began: float
    name: str
    may_start: bool


class ProcessGuard:
    """Watches for servers and engines that this test process starts, directly or not.

    `offences` has a line for each that a test without leave has started.
    """

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex
        self.offences: list[str] = []
        self._tests: list[Test] = []
        self._seen: set[int] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Look once more, and end."""
        self._is_over.set()
        self._thread.join()
        self.look()

    def begin(self, name: str, *, may_start: bool) -> None:
        """A test begins. Processes that start from now on belong to it."""
        self._tests.append(Test(time.clock_gettime(time.CLOCK_BOOTTIME), name, may_start))

    def look(self) -> None:
        """Blame each new server and engine on the test that ran when it was created."""
        for process in self._find():
            if process.pid in self._seen:
                continue
            self._seen.add(process.pid)
            created = _created(process)
            test = next((each for each in reversed(self._tests) if each.began - TICK_S <= created), None)
            if test is not None and not test.may_start:
                self.offences.append(f"{test.name} started {_describe(process)}")

    def _watch(self) -> None:
        while not self._is_over.wait(POLL_S):
            self.look()

    def _find(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if _is_server_or_engine(process) and self._is_ours(process):
                    yield process
            except psutil.Error:  # it ended meanwhile
                continue

    def _is_ours(self, process: psutil.Process) -> bool:
        """By its variables, or by a parent's: an engine's title overwrites its own."""
        for each in (process, *process.parents()):
            if each.pid == os.getpid():
                return True
            if value := _variable(each):
                return value == self.value
        return False


def _is_server_or_engine(process: psutil.Process) -> bool:
    """By the program, not by the name alone: tests have scripts called tritonserver."""
    if process.name() == SERVER:
        return os.path.basename(process.exe()) == SERVER  # noqa: PTH119 - psutil gives text
    # The kernel keeps 15 characters of a name.
    return process.name().startswith(ENGINE_TITLE[:15]) and ENGINE_TITLE in " ".join(process.cmdline())


def _created(process: psutil.Process) -> float:
    """Seconds since boot. psutil adds the time of boot, which the kernel gives in whole seconds only."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return int(fields[19]) * TICK_S


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"process {process.pid}, which has ended"


def _variable(process: psutil.Process) -> str:
    try:
        return process.environ().get(VARIABLE, "")
    except (psutil.Error, OSError):
        return ""
