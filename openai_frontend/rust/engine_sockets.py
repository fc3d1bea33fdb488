"""The sockets between one Rust process and the bridge: those of vLLM's engine cores."""

import socket
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import zmq
import zmq.asyncio

BACKLOG = 128


class MessageType(bytes, Enum):
    """The first frame of what a front end sends an engine (vLLM's EngineCoreRequestType)."""

    ADD = b"\x00"
    ABORT = b"\x01"
    UTILITY = b"\x03"


ENGINE_DEAD = b"ENGINE_CORE_DEAD"
"""What an engine core sends, in vLLM, when it dies: the front end then fails all requests, and says so on /health."""


class EngineSockets:
    """For each engine one socket on which requests come; one for all on which steps go out.

    The Rust process listens. It gets its listeners as file descriptors, so that the engines can connect at once.
    """

    def __init__(self, folder: Path, num_engines: int) -> None:
        """folder: a private one, for the sockets' files."""
        self._paths = (folder / "requests", folder / "steps")
        self.listeners = tuple(_listen(path) for path in self._paths)
        """For requests, for steps."""
        context = zmq.asyncio.Context()
        requests, steps = (f"ipc://{path}" for path in self._paths)
        self._requests: list[zmq.asyncio.Socket] = []
        for index in range(num_engines):
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.IDENTITY, index.to_bytes(2, "little"))
            _configure(dealer)
            dealer.connect(requests)
            self._requests.append(dealer)
        # Not an asyncio socket: a step costs a tenth with a plain one, which never blocks without a high-water mark.
        self._steps: zmq.Socket[bytes] = zmq.Context.shadow(context).socket(zmq.PUSH)
        _configure(self._steps)
        self._steps.connect(steps)
        self._context = context

    def introduce(self, ready_responses: Sequence[bytes]) -> None:
        """Say for each engine that it is ready, with its encoded EngineCoreReadyResponse."""
        for dealer, response in zip(self._requests, ready_responses, strict=True):
            zmq.Socket.shadow(dealer).send(response)

    async def receive(self, index: int) -> list[bytes]:
        """The frames of the next message to engine `index`: a MessageType, then msgpack."""
        return await self._requests[index].recv_multipart()

    def send(self, step: bytes) -> None:
        """Send encoded EngineCoreOutputs, or ENGINE_DEAD. Never blocks."""
        self._steps.send(step, zmq.NOBLOCK)

    def close(self) -> None:
        """Close all, and remove the files. What was not sent is lost."""
        for listener in self.listeners:
            listener.close()
        for each in (*self._requests, self._steps):
            each.close(linger=0)
        self._context.term()
        for path in self._paths:
            path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def _configure(each: "zmq.Socket[bytes] | zmq.asyncio.Socket") -> None:
    each.setsockopt(zmq.SNDHWM, 0)
    each.setsockopt(zmq.RCVHWM, 0)
