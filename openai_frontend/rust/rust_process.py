"""The process of vLLM's Rust front end."""

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonlive.guarded_command import ends_with_parent
from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE

# Routes that these would add change weights or read the machine. The bridge refuses what they call, too.
UNWANTED = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY")
# Tensors of a request travel in its one message, as Triton's tensor holds one.
INLINE = {"VLLM_MSGPACK_ZERO_COPY_THRESHOLD": str(2**62)}
KILL_AFTER_S = 5.0
MAX_ADDRESS_SPACE = 8 * 2**30
"""Bytes. A request's template of 130 bytes can ask for all memory of the machine; so the process dies first."""


def environment(base: Mapping[str, str], api_key: str | None) -> dict[str, str]:
    """The environment of the process. It learns the inference key, and by no command line, which all users can read."""
    kept = {name: value for name, value in base.items() if name not in UNWANTED}
    for name in (API_KEY_VARIABLE, CONTROL_KEY_VARIABLE):
        kept.pop(name, None)
    colors = {} if sys.stderr.isatty() else {"NO_COLOR": "1"}
    return kept | INLINE | colors | ({"VLLM_API_KEY": api_key} if api_key else {})


def command(binary: Path, descriptors: Sequence[int], num_engines: int, arguments: str) -> list[str]:
    """The command line. descriptors: the listeners for HTTP, requests and steps. arguments: `vllm serve`'s, as JSON."""
    http, requests, steps = map(str, descriptors)
    return [
        *(str(binary), "frontend"),
        *("--listen-fd", http, "--input-listener-fd", requests, "--output-listener-fd", steps),
        *("--engine-count", str(num_engines), "--data-parallel-size", str(num_engines)),
        *("--args-json", arguments),
    ]


class RustProcess:
    """Made by `start`. It ends with this process, however that ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, binary: Path, listeners: Sequence[socket.socket], num_engines: int, arguments: str, api_key: str | None
    ) -> "RustProcess":
        """Start it. listeners: for HTTP, requests and steps. Raises OSError."""
        descriptors = [listener.fileno() for listener in listeners]
        process = await asyncio.create_subprocess_exec(
            # Not SIGTERM: it would wait for the tokens of its streams, which come no more.
            *ends_with_parent(command(binary, descriptors, num_engines, arguments), signal="KILL"),
            env=environment(os.environ, api_key),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
        )
        with contextlib.suppress(ProcessLookupError):  # it has ended
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait until it has ended; returns its exit status, or the negative number of the signal that killed it."""
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Have it finish its requests within `timeout_s`, and end."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(timeout_s + KILL_AFTER_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
