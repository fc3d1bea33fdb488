"""Start the front end: wait for Triton, then serve."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, cast

import uvicorn

from openai_frontend import engine_info
from openai_frontend.engine_info import IncompatibleServer
from openai_frontend.guards.connection import connection_factory
from openai_frontend.guards.limits import DEFAULTS, UNLIMITED, Limits
from openai_frontend.options import Options
from openai_frontend.rust.port import RustAddress, RustPort
from tritonlive.wire.environment import ENGINE_ARGS_VARIABLE
from tritonlive.wire.ports import TRITON_GRPC_PORT

MAX_OPEN_FILES = 65_535
DEFAULT_TRITON_URL = f"127.0.0.1:{TRITON_GRPC_PORT}"
WORKER_START_S = 60
USAGE_ERROR = 2


def serve(
    triton_urls: list[str],
    vllm_argv: list[str],
    *,
    host: str,
    port: int,
    workers: int,
    wait_s: float | None,
    use_fast_path: bool = True,
    limits: Limits = DEFAULTS,
    ignore_unknown_fields: bool = False,
    rust: RustAddress | None = None,
) -> int:
    """Serve the OpenAI API over the Triton servers until a signal; returns the exit status.

    triton_urls: host:port of each replica's gRPC endpoint.
    vllm_argv: arguments of `vllm serve` for the API's half of vLLM.
    wait_s: how long to wait for Triton; None for ever.
    use_fast_path: False has vLLM build every chunk of every stream.
    ignore_unknown_fields: True has request fields without effect ignored, as vLLM does.
    rust: where vLLM's Rust front end serves beside this one; None for nowhere.
    """
    allow_connections()
    # This process imports vLLM only if it serves by itself: the import takes 0.5 GB.
    check = check_arguments if workers == 1 else check_arguments_elsewhere
    if error := check(vllm_argv):
        say(error)
        return USAGE_ERROR
    if workers == 1:
        # The import takes as long as Triton needs to load a small model: do both at once.
        importlib.import_module("openai_frontend.app")
    try:
        described = engine_info.wait(triton_urls, wait_s, say)
    except (IncompatibleServer, TimeoutError) as error:
        say(str(error))
        return 1
    options = Options(
        triton_urls,
        vllm_argv,
        workers,
        described,
        use_fast_path=use_fast_path,
        limits=limits,
        ignore_unknown_fields=ignore_unknown_fields,
    )
    options.to_environment()
    os.environ.update(UNLIMITED)
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonlive-metrics-"))
        rust_port = stack.enter_context(RustPort(rust, limits.drain_s, say)) if rust else None
        # uvicorn raises again what ended it: this process is to go on to the end of this block.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        if workers > 1:
            # Workers add up their metrics in files; prometheus_client reads this at import.
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", metrics)
        uvicorn.run(
            "openai_frontend.app:create_app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            http=cast(Any, connection_factory(limits)),  # uvicorn calls it like a class
            ws="none",  # no route is a websocket, and vLLM's /metrics fails on one
            log_level="info",
            access_log=False,
            timeout_graceful_shutdown=limits.drain_s,
            timeout_worker_healthcheck=WORKER_START_S,
        )
    return USAGE_ERROR if rust_port is not None and rust_port.has_failed else 0


def check_arguments(vllm_argv: Sequence[str]) -> str | None:
    """What is wrong with vLLM's arguments, for the engine as well where its command line is in the environment."""
    from openai_frontend import arguments  # imports vLLM

    try:
        arguments.check(shlex.split(os.environ.get(ENGINE_ARGS_VARIABLE, "")), vllm_argv)
    except ValueError as error:
        return str(error)
    return None


def check_arguments_elsewhere(vllm_argv: Sequence[str]) -> str | None:
    """The same, in a process that ends afterwards."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(check_arguments, vllm_argv).result()


def allow_connections() -> None:
    """Raise the limit of open files. Each connection is one, and shells often allow only 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def triton_urls(given: Sequence[str]) -> list[str]:
    """host:port of every replica, each once, in the order given, or Triton's default port here.

    given: each item may hold several, separated by commas.
    """
    urls = [url.strip().removeprefix("grpc://") for value in given for url in value.split(",")]
    return list(dict.fromkeys(url for url in urls if url)) or [DEFAULT_TRITON_URL]


def say(text: str) -> None:
    """Print a line to stderr, at once."""
    sys.stderr.write(f"openai_frontend: {text}\n")
    sys.stderr.flush()
