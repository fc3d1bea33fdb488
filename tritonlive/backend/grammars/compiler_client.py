"""The model's side of the compiler process: starts it, sends it jobs, and starts it again if it ends."""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from .messages import HEADER, Cancel, Ended, FromProcess, Job, Ready, Setup, frame

MODULE = "tritonlive.backend.grammars.compiler_process"
# The process imports vLLM: ten seconds of processor time, more on a busy machine.
START_TIMEOUT_S = 180.0
NICENESS = 5  # the engine comes first, and its start, too


class CompilerLost(Exception):
    """The process has ended, or did not start."""


class CompilerClient:
    """One compiler process. All methods but `stop` are for the engine's loop."""

    def __init__(self, engine_argv: Sequence[str]) -> None:
        self._engine_argv = list(engine_argv)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Ended]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, for tests and people; None before the start."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, unless it runs. Does not wait: jobs do."""
        if self._ready is None:
            self._ready = asyncio.create_task(self._start(), name="grammar-compiler-start")

    async def run(self, fields: dict[str, Any], memory_bytes: int, wall_s: float, cpu_s: float = 0.0) -> Ended:
        """Run a job; cancelling kills it. Raises CompilerLost."""
        await self._started()
        job = Job(next(self._numbers), fields, memory_bytes, wall_s, cpu_s)
        future = self._waiting[job.number] = asyncio.get_running_loop().create_future()
        self._send(job)
        try:
            return await future
        except asyncio.CancelledError:
            self._send(Cancel(job.number))
            raise
        finally:
            self._waiting.pop(job.number, None)

    def stop(self) -> None:
        """End the process and its children. From any thread, when the loop serves no more requests."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)

    async def _started(self) -> None:
        self.start()
        try:
            await asyncio.shield(cast(asyncio.Task[None], self._ready))
        except (OSError, TimeoutError) as error:
            self.stop()
            self._ready = None
            raise CompilerLost from error

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = spawn(theirs.fileno())
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(Setup(self._engine_argv))
        is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader, is_ready), name="grammar-compiler")
        await asyncio.wait_for(is_ready, START_TIMEOUT_S)

    def _send(self, message: Setup | Job | Cancel) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _read(self, reader: asyncio.StreamReader, is_ready: "asyncio.Future[None]") -> None:
        decoder = msgspec.msgpack.Decoder(FromProcess)
        try:
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = decoder.decode(await reader.readexactly(length))
                if isinstance(message, Ready):
                    is_ready.set_result(None)
                elif (future := self._waiting.get(message.number)) is not None and not future.done():
                    future.set_result(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._lose(is_ready)

    def _lose(self, is_ready: "asyncio.Future[None]") -> None:
        if self._process is not None:
            self._process.poll()  # reaps it
        if self._writer is not None:
            self._writer.close()
        self._ready = self._writer = None  # the next job starts another
        for future in (is_ready, *self._waiting.values()):
            if not future.done():
                future.set_exception(CompilerLost())


def spawn(descriptor: int) -> "subprocess.Popen[bytes]":
    """Start the process, with the socket to this one as `descriptor`."""
    environment = dict(os.environ)
    # As in this process, whatever put its packages there; the embedded interpreter has no PYTHONPATH.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["MALLOC_ARENA_MAX"] = "2"  # arenas count as memory of a job, used or not
    environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    command = [sys.executable, "-P", "-m", MODULE, str(descriptor)]
    process = subprocess.Popen(command, pass_fds=[descriptor], env=environment, stdin=subprocess.DEVNULL)
    os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)  # before its imports, which take the most
    return process
