"""`python -m openai_frontend`: wait for Triton, then serve."""

import argparse
import importlib
import os
import resource
import sys
import tempfile

import uvicorn

from openai_frontend import description
from openai_frontend.errors import IncompatibleServer
from openai_frontend.options import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE, Options

MAX_OPEN_FILES = 65_535
DEFAULT_TRITON_URL = "127.0.0.1:8001"
EPILOG = f"""\
Every other argument is vLLM's, as for `vllm serve`: --tool-call-parser, --enable-auto-tool-choice, --chat-template,
--reasoning-parser, --enable-log-requests, ... The engine's own arguments come from Triton.

environment:
  {API_KEY_VARIABLE}      inference key(s), comma separated; without one, anyone who reaches the port may generate
  {CONTROL_KEY_VARIABLE}  control key, the one the Triton server was started with; without one, control is off

example:
  python -m openai_frontend --triton-url 127.0.0.1:8001 --enable-auto-tool-choice --tool-call-parser hermes
  python -m openai_frontend --triton-url gpu-1:8001 --triton-url gpu-2:8001
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m openai_frontend",
        description="Serve the OpenAI API over one or more Triton servers that run tritonlive's model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--triton-url",
        action="append",
        metavar="HOST:PORT",
        help=f"Triton's gRPC endpoint ({DEFAULT_TRITON_URL}); once for each replica, or comma separated",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (%(default)s)")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="how long to wait for Triton (no limit)")
    parser.add_argument(
        "--drain", type=int, default=10, metavar="SECONDS", help="time for open requests at exit (%(default)s)"
    )
    return parser.parse_known_args(argv)


def main() -> int:
    args, vllm_argv = parse(sys.argv[1:])
    allow_connections()
    urls = triton_urls(args.triton_url)
    if args.workers == 1:
        # The import takes as long as Triton needs to load a small model: do both at once.
        importlib.import_module("openai_frontend.app")
    try:
        described = description.wait(urls, args.wait, say)
    except (IncompatibleServer, TimeoutError) as error:
        say(str(error))
        return 1
    Options(urls, vllm_argv, args.workers, described).to_environment()
    with tempfile.TemporaryDirectory(prefix="tritonlive-metrics-") as metrics:
        if args.workers > 1:
            # Workers add up their metrics in files; prometheus_client reads this at import.
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", metrics)
        uvicorn.run(
            "openai_frontend.app:create_app",
            factory=True,
            host=args.host,
            port=args.port,
            workers=args.workers,
            log_level="info",
            access_log=False,
            timeout_graceful_shutdown=args.drain,
            timeout_worker_healthcheck=60,
        )
    return 0


def allow_connections() -> None:
    """Each is an open file, of which a shell often allows 1024, while the system would allow more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def triton_urls(given: list[str] | None) -> list[str]:
    """host:port of every replica, each once, in the order given."""
    urls = [url.strip().removeprefix("grpc://") for value in given or [] for url in value.split(",")]
    return list(dict.fromkeys(url for url in urls if url)) or [DEFAULT_TRITON_URL]


def say(text: str) -> None:
    sys.stderr.write(f"openai_frontend: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
