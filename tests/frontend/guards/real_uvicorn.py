"""A real uvicorn with the connections of the front end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from openai_frontend.guards.connection import connection_factory
from openai_frontend.guards.limits import Limits

STOP_S = 10.0


@asynccontextmanager
async def serving(app: Any, limits: Limits) -> AsyncIterator[int]:
    """The port of a server of `app`."""
    factory: Any = connection_factory(limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=factory, ws="none", log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, STOP_S)
