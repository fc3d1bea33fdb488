"""`python -m bench.fast_path.frontend URL`: a front end whose fast path can be switched while it runs.

A question names the parts to switch off. The answer has the process's CPU time so far (user + system, in seconds).
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import uvicorn

from bench.child import serve
from openai_frontend import app as app_module
from openai_frontend import engine_info
from openai_frontend.guards.connection import connection_factory
from openai_frontend.guards.disconnect import DisconnectMiddleware
from openai_frontend.guards.limits import DEFAULTS
from openai_frontend.options import Options
from openai_frontend.streaming.fast_path import FastPathMiddleware
from openai_frontend.streaming.templated_serving import TemplatedChat, TemplatedCompletion
from openai_frontend.streaming.weight_spans import VersionedChat, VersionedCompletion

STREAMS = {
    TemplatedChat: (VersionedChat, "chat_completion_stream_generator"),
    TemplatedCompletion: (VersionedCompletion, "completion_stream_generator"),
}
MIDDLEWARES = {"fast_path": FastPathMiddleware, "disconnect": DisconnectMiddleware}
RENDERING = ("_tokenize_prompt_async", "_apply_chat_template_async")


class Switches:
    """Switches the parts of the fast path of the app that `create_app` made."""

    def __init__(self, renderer: Any, slow: dict[str, Any]) -> None:
        """slow: the renderer's own attributes before `render_short_prompts_at_once`."""
        self._renderer = renderer
        self._slow = slow
        self._fast = {name: vars(renderer)[name] for name in RENDERING}
        self._generators = {ours: getattr(ours, name) for ours, (_, name) in STREAMS.items()}
        self._calls = {middleware: middleware.__call__ for middleware in MIDDLEWARES.values()}

    def switch_off(self, parts: list[str]) -> None:
        """Switch off these parts (`fast_path`, `disconnect`, `templates`, `short_prompts`), and on all others."""
        for part, middleware in MIDDLEWARES.items():
            changed: Any = middleware
            changed.__call__ = direct if part in parts else self._calls[middleware]
        for ours, (plain, name) in STREAMS.items():
            setattr(ours, name, getattr(plain, name) if "templates" in parts else self._generators[ours])
        for name in RENDERING:
            if "short_prompts" not in parts:
                setattr(self._renderer, name, self._fast[name])
            elif name in self._slow:
                setattr(self._renderer, name, self._slow[name])
            else:
                vars(self._renderer).pop(name, None)  # the class's method applies again


async def direct(self: FastPathMiddleware | DisconnectMiddleware, scope: Any, receive: Any, send: Any) -> None:
    await self.app(scope, receive, send)


def start(url: str) -> Callable[[dict[str, Any]], dict[str, float]]:
    """Start the front end in a thread; returns the function that answers questions."""
    Options([url], [], 1, engine_info.wait([url], 60, lambda text: None)).to_environment()
    switches: list[Switches] = []
    render_at_once = app_module.render_short_prompts_at_once

    def watched(renderer: Any, **options: Any) -> None:
        slow = dict(vars(renderer))
        render_at_once(renderer, **options)
        switches.append(Switches(renderer, slow))

    with patch.object(app_module, "render_short_prompts_at_once", watched):
        app = app_module.create_app()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    http: Any = connection_factory(DEFAULTS)  # uvicorn calls it like a class
    config = uvicorn.Config(app, host="127.0.0.1", port=port, http=http, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)

    def answer(question: dict[str, Any]) -> dict[str, float]:
        if "without" in question:
            switches[0].switch_off(question["without"])
        return {"cpu_s": time.process_time(), "port": port}

    return answer


if __name__ == "__main__":
    serve(lambda: start(sys.argv[1]))
