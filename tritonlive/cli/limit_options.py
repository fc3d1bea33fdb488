"""Options of the front end's limits (openai_frontend/guards/limits.py), the same for `serve` and `frontend`."""

from typing import Annotated

import typer

from openai_frontend.guards.limits import DEFAULTS, KIB, MIB, Limits

LIMITS = "Limits of the OpenAI API"

MaxBodySize = Annotated[
    int,
    typer.Option("--max-body-size", metavar="MIB", min=1, help="Size of a request's body.", rich_help_panel=LIMITS),
]
MaxHeaderSize = Annotated[
    int,
    typer.Option(
        "--max-header-size",
        metavar="KIB",
        min=1,
        help="Size of a request's first line and headers together.",
        rich_help_panel=LIMITS,
    ),
]
ReceiveTimeout = Annotated[
    float,
    typer.Option(
        "--receive-timeout",
        metavar="SECONDS",
        min=0.1,
        help="Time for a request's headers, and for each next piece of its body.",
        rich_help_panel=LIMITS,
    ),
]
MaxN = Annotated[int, typer.Option("--max-n", min=1, help="Answers to one prompt.", rich_help_panel=LIMITS)]
MaxPrompts = Annotated[
    int, typer.Option("--max-prompts", min=1, help="Prompts in one request.", rich_help_panel=LIMITS)
]
MaxGenerations = Annotated[
    int,
    typer.Option(
        "--max-generations", min=1, help="Answers to all prompts of one request together.", rich_help_panel=LIMITS
    ),
]
MaxQueued = Annotated[
    int,
    typer.Option(
        "--max-queued",
        min=1,
        help="Generations of one front-end process that wait or run; further requests get 503.",
        rich_help_panel=LIMITS,
    ),
]
MaxUnreadTokens = Annotated[
    int,
    typer.Option(
        "--max-unread-tokens",
        min=1,
        help="Tokens and logprobs of a stream that its client has not read; beyond it the stream ends.",
        rich_help_panel=LIMITS,
    ),
]
Drain = Annotated[
    int,
    typer.Option("--drain", metavar="SECONDS", min=0, help="Time for open requests at exit.", rich_help_panel=LIMITS),
]

BODY_SIZE_MIB = DEFAULTS.max_body_size // MIB
HEADER_SIZE_KIB = DEFAULTS.max_header_size // KIB


def limits(*, max_body_size_mib: int, max_header_size_kib: int, receive_timeout_s: float, **others: int) -> Limits:
    """The limits; `others` are fields of Limits."""
    return Limits(
        max_body_size=max_body_size_mib * MIB,
        max_header_size=max_header_size_kib * KIB,
        receive_timeout_s=receive_timeout_s,
        **others,
    )


FIELDS = {
    "--max-body-size": ("max_body_size", MIB),
    "--max-header-size": ("max_header_size", KIB),
    "--receive-timeout": ("receive_timeout_s", 1),
    "--max-n": ("max_n", 1),
    "--max-prompts": ("max_prompts", 1),
    "--max-generations": ("max_generations", 1),
    "--max-queued": ("max_queued", 1),
    "--max-unread-tokens": ("max_unread_tokens", 1),
    "--drain": ("drain_s", 1),
}
"""By option, the field of Limits and the option's unit."""


def frontend_arguments(chosen: Limits) -> tuple[str, ...]:
    """The arguments of `tritonlive frontend` for what `chosen` has other than the defaults."""
    return tuple(
        part
        for option, (field, unit) in FIELDS.items()
        if (value := getattr(chosen, field)) != getattr(DEFAULTS, field)
        for part in (option, f"{value / unit:.12g}")
    )
