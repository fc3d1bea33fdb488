"""Keeps a Rust process running in front of the bridge, and has it say the truth about its engines."""

import asyncio
import contextlib
import logging
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import msgspec

from openai_frontend.errors import EngineUnavailable
from openai_frontend.rust.bridge import Bridge
from openai_frontend.rust.engine_sockets import ENGINE_DEAD, EngineSockets
from openai_frontend.rust.rust_process import RustProcess
from tritonlive.backoff import Backoff

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.25
STABLE_S, LARGEST_DELAY_S = 60.0, 5.0


class RustError(Exception):
    """The Rust front end cannot be started, or has failed."""


class RustProcessLost(RustError):
    """The process ended, or was given up, in a way that a client may have caused."""


def failure(status: int) -> RustError:
    """What the end of a process means. status: as of asyncio's Process."""
    if status < 0:
        return RustProcessLost(f"vllm-rs was killed by signal {-status}")
    return RustError(f"vllm-rs ended with status {status}; it says why above")


@dataclass(frozen=True)
class Setting:
    """What each process is started with."""

    binary: Path
    http: socket.socket
    """Bound to the address to serve on."""
    arguments: str
    """`vllm serve`'s, as JSON."""
    ready_responses: Sequence[bytes]
    """An encoded EngineCoreReadyResponse for each replica."""
    api_key: str | None
    drain_s: float


class RustFrontEnd:
    """Runs one Rust process after another, until it is cancelled.

    vLLM's front ends cannot lose their engine and get it back. So while no replica can generate, the process is told
    that its engine is dead, which it says on /health; when one can, a new process takes its place. The socket that
    clients connect to stays.
    """

    def __init__(self, bridge: Bridge, setting: Setting) -> None:
        self._bridge = bridge
        self._setting = setting

    async def run(self) -> Never:
        """Raises RustError or OSError if the first process cannot serve.

        After that there is no end of restarts: a client can kill the process, which must cost this port alone.
        """
        backoff, has_served = Backoff(STABLE_S, LARGEST_DELAY_S), False
        while True:
            await self._eligible()
            backoff.began()
            try:
                await self._serve()
                has_served = True
            except (RustError, OSError) as error:
                delay_s = backoff.failed()
                has_served = has_served or backoff.has_been_stable
                if not (has_served or isinstance(error, RustProcessLost)):
                    raise
                logger.warning("%s; starting it again", error)
                await asyncio.sleep(delay_s)

    async def _serve(self) -> None:
        """Run one process until its replicas were lost and one is back. Raises RustError if it ends by itself."""
        setting, num_engines = self._setting, len(self._setting.ready_responses)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonlive-rust-")))
            sockets = EngineSockets(folder, num_engines)
            stack.callback(sockets.close)
            setting.http.listen(1024)
            listeners = (setting.http, *sockets.listeners)
            process = await RustProcess.start(
                setting.binary, listeners, num_engines, setting.arguments, setting.api_key
            )
            sockets.introduce(setting.ready_responses)
            self._bridge.attach(sockets.send)
            stack.callback(self._bridge.attach, None)
            receiving = [asyncio.create_task(self._receive(sockets, index)) for index in range(num_engines)]
            ended, lost = asyncio.create_task(process.ended()), asyncio.create_task(self._lost_and_back(sockets))
            try:
                done, _ = await asyncio.wait([ended, lost, *receiving], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)  # raises the error that ended a task
                if lost not in done:
                    raise failure(ended.result())
            finally:
                # Its requests go on while it ends: their tokens still come.
                await asyncio.shield(process.stop(0 if lost.done() else setting.drain_s))
                for task in (*receiving, lost):
                    task.cancel()
                await asyncio.gather(*receiving, lost, ended, return_exceptions=True)

    async def _receive(self, sockets: EngineSockets, index: int) -> None:
        while True:
            frames = await sockets.receive(index)
            try:
                self._bridge.take(index, frames)
            except (msgspec.MsgspecError, ValueError) as error:
                raise RustProcessLost(f"vllm-rs sent what no engine of this version understands: {error}") from error

    async def _lost_and_back(self, sockets: EngineSockets) -> None:
        """Wait until no replica can generate, tell the process, and wait until one can."""
        while True:
            try:
                await self._bridge.replicas.require()
            except EngineUnavailable as error:
                logger.warning("no replica can generate: %s", error.reason)
                break
            await asyncio.sleep(WATCH_INTERVAL_S)
        sockets.send(ENGINE_DEAD)
        await self._eligible()

    async def _eligible(self) -> None:
        while not self._bridge.replicas.eligible():  # noqa: ASYNC110 - replicas become eligible for many reasons
            await asyncio.sleep(WATCH_INTERVAL_S)
