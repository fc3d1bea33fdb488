"""The process in which grammars are compiled for the first time: `python -m …compiler_process FD`.

It holds the model's tokenizer and the compilers' tables, and forks a child for each grammar. The child inherits those
tables, has limits of memory and time that the kernel enforces, and can be killed in the middle of a native call. What
a compiler spoils, its memory included, ends with the child.
"""

import os
import resource
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from tritonlive.backend.arguments import parse_arguments
from tritonlive.backend.vllm_seam.structured_outputs import (
    GrammarBackends,
    StructuredOutputsParams,
    tokenizer_of,
    validate,
)

from .messages import HEADER, Cancel, Compiled, Ended, Job, Ready, Rejected, Setup, ToProcess, frame
from .patterns import misread_pattern

PAGE = resource.getpagesize()
MAX_REASON = 1000  # characters; compilers repeat the grammar in their messages
# Compiled once before the first fork, so that children need not import what compilers import late.
SAMPLES: tuple[dict[str, Any], ...] = ({"json": {"type": "object"}}, {"regex": "(?i)a"})


class Compiler:
    """vLLM's validation and compilers, for one model."""

    def __init__(self, engine_argv: list[str]) -> None:
        self._config = parse_arguments(engine_argv).create_engine_config()
        self._tokenizer = tokenizer_of(self._config)
        self._backends = GrammarBackends(self._config, self._tokenizer)
        for fields in SAMPLES:
            self.compile(fields)

    def compile(self, fields: dict[str, Any]) -> Compiled | Rejected:
        """Validate and compile a grammar, and compute which tokens it allows first."""
        try:
            params = StructuredOutputsParams(**fields)
            backend = validate(self._config, self._tokenizer, params)
            if (reason := misread_pattern(params, backend)) is not None:
                return Rejected(reason)
            mask = self._backends.first_mask(backend, self._backends.compile(backend, params))
        except MemoryError:
            return Rejected("its compilation needs too much memory")
        except Exception as error:  # compilers raise anything
            return Rejected(str(error) or type(error).__name__)
        if not mask.any():
            return Rejected("it allows no token at all: no text can match it")
        return Compiled(backend)


class Jobs:
    """The running children, and the socket to the model."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._pids: dict[int, int] = {}  # by number of the job
        self._decoder = msgspec.msgpack.Decoder(ToProcess)

    def serve(self) -> None:
        """Run jobs until the model closes the socket."""
        try:
            setup = self._receive()
            if not isinstance(setup, Setup):
                raise TypeError(f"expected Setup, got {setup!r}")
            compiler = Compiler(setup.engine_argv)
            signal.signal(signal.SIGTERM, end)
            self._send(Ready())
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is self._connection:
                        self._handle(self._receive(), compiler)
                    else:
                        self._collect(key.data, key.fd)
        except EOFError:
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)

    def _handle(self, message: ToProcess, compiler: Compiler) -> None:
        if isinstance(message, Job):
            self._start(message, compiler)
        elif isinstance(message, Cancel) and message.number in self._pids:
            os.kill(self._pids[message.number], signal.SIGKILL)  # not reaped yet, so the id is still the child's

    def _start(self, job: Job, compiler: Compiler) -> None:
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            run_child(job, compiler, writable)
        os.close(writable)
        self._pids[job.number] = pid
        self._selector.register(readable, selectors.EVENT_READ, job.number)

    def _collect(self, number: int, readable: int) -> None:
        """Read a child's result, which is small and comes at once, or the end of its pipe."""
        body = os.read(readable, 1 << 16)
        self._selector.unregister(readable)
        os.close(readable)
        _, status = os.waitpid(self._pids.pop(number), 0)
        result = msgspec.msgpack.decode(body, type=Compiled | Rejected) if body else None
        self._send(Ended(number, result, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))

    def _send(self, message: Ready | Ended) -> None:
        self._connection.sendall(frame(message))

    def _receive(self) -> ToProcess:
        (length,) = HEADER.unpack(self._read(HEADER.size))
        return self._decoder.decode(self._read(length))

    def _read(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            part = self._connection.recv(size - len(body))
            if not part:
                raise EOFError
            body += part
        return bytes(body)


def end(_number: int, _frame: object) -> None:
    """Handler of SIGTERM: end as when the model closes the socket."""
    raise EOFError


def run_child(job: Job, compiler: Compiler, writable: int) -> None:
    """Compile in this process within the job's limits, write the result, and end the process."""
    try:
        # The default actions end the process, even inside a native call.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.wall_s)
        signal.setitimer(signal.ITIMER_PROF, job.cpu_s)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + job.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # a hostile grammar must not fill the log with the compilers' messages
        os.dup2(nowhere, 2)
        result = compiler.compile(job.fields)
        if isinstance(result, Rejected):
            result.reason = result.reason[:MAX_REASON]
        os.write(writable, msgspec.msgpack.encode(result))
    finally:
        os._exit(0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as model:
        Jobs(model).serve()
        os._exit(0)  # finalizing torch takes seconds, and there is nothing to save
