"""`python -m openai_frontend.rust`: the bridge and its Rust process. A front end starts it: see port.py."""

import asyncio
import logging
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from openai_frontend.options import Options
from openai_frontend.rust.bootstrap import Bootstrap
from openai_frontend.rust.bridge import Bridge
from openai_frontend.rust.exit_status import CANNOT_SERVE
from openai_frontend.rust.rust_front_end import RustError, RustFrontEnd, Setting

BIND_PATIENCE_S = 5.0
"""The Rust process of a bridge that was killed ends a moment later, and holds the port until then."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")],
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")],
    binary: Annotated[Path, typer.Option("--binary", help="vllm-rs.")],
) -> None:
    """Serve vLLM's Rust front end over the Triton servers that the environment names. Reads a Bootstrap from stdin."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s rust port: %(message)s")
    options = Options.from_environment()
    try:
        http = bind(host, port)
        bootstrap = msgspec.json.decode(sys.stdin.buffer.read(), type=Bootstrap)
    except (OSError, msgspec.MsgspecError) as error:
        typer.echo(f"rust port: {error}", err=True)
        raise typer.Exit(CANNOT_SERVE) from error
    raise typer.Exit(uvloop.run(serve(options, binary, http, bootstrap)))


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: clients are refused until the first process serves. Raises OSError."""
    http = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            http.bind((host, port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return http


async def serve(options: Options, binary: Path, http: socket.socket, bootstrap: Bootstrap) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    bridge = Bridge(options.triton_urls, options.engine_info, options.keys.for_triton)
    setting = Setting(
        binary=binary,
        http=http,
        arguments=bootstrap.arguments,
        ready_responses=bootstrap.ready_responses,
        api_key=next(iter(options.keys.inference), None),
        drain_s=options.limits.drain_s,
    )
    replicas = bridge.replicas.members
    await asyncio.gather(*(replica.connect() for replica in replicas))
    connections = [asyncio.create_task(replica.stay_connected()) for replica in replicas]
    serving = asyncio.create_task(RustFrontEnd(bridge, setting).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:  # by a signal
        pass
    except (RustError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        return CANNOT_SERVE
    finally:
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in replicas))
    return 0


if __name__ == "__main__":
    app(prog_name="python -m openai_frontend.rust")
