"""The engines' sockets, with a front end's sockets that adopt the listeners as vLLM's do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from openai_frontend.rust.engine_sockets import EngineSockets

TIMEOUT_S = 10


class FrontEnd:
    """The Rust side: it adopts the listeners' descriptors."""

    def __init__(self, sockets: EngineSockets, folder: Path) -> None:
        self.context = zmq.asyncio.Context()
        requests, steps = sockets.listeners
        self.requests = self.context.socket(zmq.ROUTER)
        self.requests.setsockopt(zmq.USE_FD, requests.detach())
        self.requests.bind(f"ipc://{folder}/requests")
        self.steps = self.context.socket(zmq.PULL)
        self.steps.setsockopt(zmq.USE_FD, steps.detach())
        self.steps.bind(f"ipc://{folder}/steps")

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[EngineSockets, FrontEnd]]:
    sockets = EngineSockets(tmp_path, 2)
    front_end = FrontEnd(sockets, tmp_path)
    async with asyncio.timeout(TIMEOUT_S):
        yield sockets, front_end
    sockets.close()
    front_end.close()


async def test_engines_are_introduced_and_get_their_own_messages(ends: tuple[EngineSockets, FrontEnd]) -> None:
    sockets, front_end = ends
    sockets.introduce([b"first", b"second"])
    introduced = dict([await front_end.requests.recv_multipart() for _ in range(2)])
    assert introduced == {b"\x00\x00": b"first", b"\x01\x00": b"second"}
    await front_end.requests.send_multipart([b"\x01\x00", b"\x00", b"payload"])
    assert await sockets.receive(1) == [b"\x00", b"payload"]


async def test_steps_arrive_in_order_however_many_wait(ends: tuple[EngineSockets, FrontEnd]) -> None:
    sockets, front_end = ends
    for number in range(5000):
        sockets.send(str(number).encode())
    assert [int(await front_end.steps.recv()) for _ in range(5000)] == list(range(5000))


async def test_it_leaves_no_file(tmp_path: Path) -> None:
    sockets = EngineSockets(tmp_path, 1)
    assert len(files(tmp_path)) == 2
    sockets.close()
    assert files(tmp_path) == []


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
