"""`python -m bench.hop.client URL`: the front end's engine core client, without the HTTP layer."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from bench.child import serve
from bench.measure import Figures


def start(runner: asyncio.Runner, url: str) -> Callable[[dict[str, Any]], Figures]:
    """Connect to Triton; returns the function that runs generations: {"concurrency", "max_tokens"} → figures."""
    from bench.hop.generations import connect

    generations, core = runner.run(connect(url))
    return lambda question: runner.run(generations.run(core, **question))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serve(lambda: start(runner, sys.argv[1]))
