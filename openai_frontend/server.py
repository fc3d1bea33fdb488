"""Start the front end: wait for Triton, then serve."""

import importlib
import os
import resource
import sys
import tempfile
from collections.abc import Sequence

import uvicorn

from openai_frontend import engine_info
from openai_frontend.errors import IncompatibleServer
from openai_frontend.options import Options
from tritonlive.wire.ports import TRITON_GRPC_PORT

MAX_OPEN_FILES = 65_535
DEFAULT_TRITON_URL = f"127.0.0.1:{TRITON_GRPC_PORT}"
WORKER_START_S = 60


def serve(
    triton_urls: list[str],
    vllm_argv: list[str],
    *,
    host: str,
    port: int,
    workers: int,
    wait_s: float | None,
    drain_s: int,
    use_fast_path: bool = True,
) -> int:
    """Serve the OpenAI API over the Triton servers until a signal; returns the exit status.

    triton_urls: host:port of each replica's gRPC endpoint.
    vllm_argv: arguments of `vllm serve` for the API's half of vLLM.
    wait_s: how long to wait for Triton; None for ever. drain_s: time for open requests at exit.
    use_fast_path: False has vLLM build every chunk of every stream.
    """
    allow_connections()
    if workers == 1:
        # The import takes as long as Triton needs to load a small model: do both at once.
        importlib.import_module("openai_frontend.app")
    try:
        described = engine_info.wait(triton_urls, wait_s, say)
    except (IncompatibleServer, TimeoutError) as error:
        say(str(error))
        return 1
    Options(triton_urls, vllm_argv, workers, described, use_fast_path=use_fast_path).to_environment()
    with tempfile.TemporaryDirectory(prefix="tritonlive-metrics-") as metrics:
        if workers > 1:
            # Workers add up their metrics in files; prometheus_client reads this at import.
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", metrics)
        uvicorn.run(
            "openai_frontend.app:create_app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            log_level="info",
            access_log=False,
            timeout_graceful_shutdown=drain_s,
            timeout_worker_healthcheck=WORKER_START_S,
        )
    return 0


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
