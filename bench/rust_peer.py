"""`python -m bench.rust_peer --model DIR …`: `vllm serve` with vLLM's Rust front end.

vLLM's server module has no Rust front end: the `serve` command chooses it, and the `vllm` command needs a distribution
named `vllm`, which the CPU build is not. This is that command without the rest of the command line.
VLLM_USE_RUST_FRONTEND and VLLM_RUST_FRONTEND_PATH must be set.
"""

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args()
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


if __name__ == "__main__":
    main()
