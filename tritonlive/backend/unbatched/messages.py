"""What a Triton model without a batch dimension and the model with the engine say to each other, and how it is framed.

Both are processes of one tritonserver, on one machine and of one user. A frame is a length and a msgpack message.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

SEND_TIMEOUT_S = 2
"""A peer that takes nothing for so long is given up: the sender's thread serves others, too."""

_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Array(msgspec.Struct, array_like=True, frozen=True):
    """One tensor, without a batch dimension. Strings travel as a list, in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[bytes]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> "Array":
        data = array.ravel().tolist() if array.dtype.hasobject else array.tobytes()
        return cls(name, array.dtype.str, array.shape, data)

    def as_numpy(self) -> np.ndarray:
        if isinstance(self.data, list):
            return np.array(self.data, dtype=np.object_).reshape(self.shape)
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


class Infer(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """A request; `parameters` is the JSON of its Triton parameters."""

    number: int
    parameters: str
    inputs: list[Array]


class Cancel(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """The client of that request has gone."""

    number: int


class Answer(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """One response: outputs, or an error with its code (tritonlive/wire/error_codes.py)."""

    number: int
    is_final: bool
    outputs: list[Array] = []
    error: str | None = None
    code: str = ""


class Connection:
    """A connection on which any thread may send and one may receive."""

    def __init__(self, connected: socket.socket) -> None:
        """Raises PermissionError if the process at the other end is another user's."""
        if (uid := peer_uid(connected)) != os.getuid():
            connected.close()
            raise PermissionError(f"the process at the other end belongs to user {uid}")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._socket = connected
        self._reader = connected.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Infer | Cancel | Answer) -> None:
        """Send one message. Raises OSError, and closes, if the other end has gone or does not read."""
        payload = msgspec.msgpack.encode(message)
        with self._lock:
            try:
                self._socket.sendall(_LENGTH.pack(len(payload)) + payload)
            except OSError:
                self.close()
                raise

    def receive(self, kind: Any) -> Iterator[Any]:
        """Yield messages of that type until either end closes."""
        decoder = msgspec.msgpack.Decoder(kind)
        try:
            while len(head := self._reader.read(_LENGTH.size)) == _LENGTH.size:
                (length,) = _LENGTH.unpack(head)
                if len(payload := self._reader.read(length)) < length:
                    break
                yield decoder.decode(payload)
        except OSError:  # the other end died
            return
        finally:
            with self._lock:
                self._reader.close()
                self._socket.close()

    def close(self) -> None:
        """End `receive` here and at the other end."""
        with suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)


def address(engine_model: str) -> str:
    """Where the model with the engine listens: a name in Linux's abstract namespace, which ends with its process.

    Both processes are children of one tritonserver. Containers can share a network, and so these names, but no pids.
    """
    return f"\0tritonlive/{Path('/proc/self/ns/pid').readlink()}/{os.getppid()}/{engine_model}"


def peer_uid(connected: socket.socket) -> int:
    """User of the process at the other end, as the kernel knows it."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1]
