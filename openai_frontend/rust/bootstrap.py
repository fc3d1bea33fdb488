"""What a Rust process must be told at its start. `python -m openai_frontend.rust.bootstrap` prints it.

It is made with vLLM, in a process that ends afterwards, once for all bridges of a front end: see port.py.
"""

import json
import os
import sys
import uuid
from argparse import Namespace
from dataclasses import replace
from typing import Any

import msgspec

from openai_frontend.options import Options

READY_TIMEOUT_S = 600
"""How long the process waits for its engines. The bridge introduces them at once."""
KEEP_ALIVE_S = 5
# Arguments that the Rust front end has a route or a use for, and this port has not.
NOT_PASSED_ON = {
    "api_key",  # by the environment: see rust_process.py
    "api_server_count",
    "data_parallel_rank",
    "data_parallel_external_lb",
    "data_parallel_hybrid_lb",
    "grpc_port",
    "lora_modules",
    "profiler_config",
}


class Bootstrap(msgspec.Struct, frozen=True):
    """See rust_process.py and engine_sockets.py."""

    arguments: str
    ready_responses: list[bytes]


def make(options: Options) -> Bootstrap:
    """From the arguments of the engine and the front end. Raises ArgumentsError."""
    from openai_frontend.engine import factory
    from openai_frontend.rust import vllm_seam

    args = factory.parse_arguments(options.engine_info, options.vllm_argv)
    config = factory.create_config(args, options.engine_info)
    first = vllm_seam.ready_response(config, uuid.uuid4().hex)
    ready = [replace(first, data_parallel_rank=rank) for rank in range(len(options.triton_urls))]
    return Bootstrap(json.dumps(arguments(args, options)), [msgspec.msgpack.encode(each) for each in ready])


def arguments(args: Namespace, options: Options) -> dict[str, Any]:
    """As vLLM's RustFrontendProcessManager makes them."""
    from openai_frontend.rust import vllm_seam

    return vllm_seam.jsonify_non_default_args(args, exclude=NOT_PASSED_ON) | {
        "model_tag": args.model,
        "served_model_name": args.served_model_name,
        "shutdown_timeout": options.limits.drain_s,
        "engine_ready_timeout_secs": READY_TIMEOUT_S,
        "http_timeout_keep_alive": KEEP_ALIVE_S,
    }


def main() -> int:
    """Print the Bootstrap of the options in the environment, as JSON; returns the exit status."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # vLLM logs to stdout
    try:
        made = make(Options.from_environment())
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with os.fdopen(output, "wb") as stream:
        stream.write(msgspec.json.encode(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
