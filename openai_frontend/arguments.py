"""vLLM's command line, parsed and checked before anything waits for Triton: a typing error is said within seconds."""

from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from openai_frontend.vllm_seam import (
    AsyncEngineArgs,
    FlexibleArgumentParser,
    ReasoningParserManager,
    ToolParserManager,
    UsageContext,
    make_arg_parser,
    validate_parsed_serve_args,
)
from tritonlive.wire.option_names import completed, no_such_name


class ArgumentsError(ValueError):
    """vLLM does not take these arguments; the message names the option."""


def parse(argv: Sequence[str]) -> Namespace:
    """Parse a command line of `vllm serve`, load the parser plug-ins that it names, and check names and files.

    Raises ArgumentsError.
    """
    try:
        args = make_arg_parser(_RaisingParser()).parse_args(list(argv))
        validate_parsed_serve_args(args)
    except ArgumentsError:
        raise
    except Exception as error:  # TypeError, OSError, and vLLM's own
        raise ArgumentsError(_without_trailer(str(error))) from error
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    for option, name, names in (
        ("--tool-call-parser", args.tool_call_parser, ToolParserManager.list_registered()),
        ("--reasoning-parser", args.reasoning_parser, ReasoningParserManager.list_registered()),
    ):
        if name and name not in names:
            raise ArgumentsError(no_such_name(option, name, names))
    return args


def check(engine_argv: Sequence[str], argv: Sequence[str]) -> None:
    """Check the arguments of the engine, as far as this process knows them, and those of the front end.

    With the engine's arguments vLLM reads the model's configuration too, and finds a missing model, a wrong dtype or a
    context that is too long. engine_argv is empty if only Triton knows them. Raises ArgumentsError.
    """
    args = parse([*engine_argv, *argv])
    if not engine_argv:
        return
    try:
        AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except Exception as error:  # pydantic's, the hub's, and those of the model's own code
        raise ArgumentsError(_without_trailer(str(error))) from error


class _RaisingParser(FlexibleArgumentParser):
    """Raises the parser's message; argparse would print its usage, 300 lines, and end the process."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(completed(message, self._option_string_actions))


def _without_trailer(message: str) -> str:
    """pydantic's message without its heading and its trailer, `[type=…, input_value=…`."""
    lines = message.partition("[type=")[0].strip().splitlines()
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    return "\n".join(lines).strip().removeprefix("Value error, ")
