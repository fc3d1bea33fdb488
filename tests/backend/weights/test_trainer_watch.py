"""Noticing that a trainer is gone, by its rendezvous."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from tritonlive.backend.weights.lease import Lease
from tritonlive.backend.weights.trainer_watch import TrainerWatch


@pytest.fixture
def gone() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def watch_at(gone: asyncio.Event) -> Callable[[int], None]:
    """watch_at(port) watches an anonymous trainer that listens there."""
    lease = Lease()
    lease.take("trainer", 60, is_anonymous=True)

    async def on_gone(generation: int, reason: str) -> None:
        assert (generation, reason) == (1, "the trainer is gone")
        gone.set()

    async def on_late(generation: int) -> None: ...

    watch = TrainerWatch(lease, on_gone, on_late)
    return lambda port: watch.start({"master_address": "127.0.0.1", "master_port": port})


async def test_a_rendezvous_that_closes_connections_is_still_there(
    watch_at: Callable[[int], None], gone: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        rendezvous.settimeout(0)
        watch_at(rendezvous.getsockname()[1])
        for _ in range(3):
            connection, _ = await loop.sock_accept(rendezvous)
            connection.close()
        await asyncio.sleep(0.5)  # it has connected again, and no process accepts the connection
        assert not gone.is_set()
    await asyncio.wait_for(gone.wait(), 5)


async def test_nobody_listens(watch_at: Callable[[int], None], gone: asyncio.Event) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        port = rendezvous.getsockname()[1]
    watch_at(port)
    await asyncio.wait_for(gone.wait(), 5)
