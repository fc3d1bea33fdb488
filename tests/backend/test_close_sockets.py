"""tritonlive/backend/vllm_seam/core.py: close_sockets, with ZeroMQ's own contexts as vLLM makes them."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq
import zmq.asyncio

from tritonlive.backend.vllm_seam.core import close_sockets


@pytest.mark.parametrize("is_open", [True, False])
def test_the_context_is_terminated_by_its_owner(is_open: bool) -> None:
    """Terminated by its shadow, it was terminated a second time, in freed memory, when the owner was collected."""

    async def run() -> None:
        owner = zmq.Context(io_threads=2)
        shadow = zmq.asyncio.Context(owner)
        socket = shadow.socket(zmq.ROUTER)
        if not is_open:
            socket.close(linger=0)
        llm = SimpleNamespace(engine_core=SimpleNamespace(ctx=shadow, resources=SimpleNamespace(ctx=owner)))
        await close_sockets(cast("Any", llm))
        assert socket.closed
        assert owner.closed

    asyncio.run(run())
