"""Options of limits of structured outputs, for the commands that start a Triton server."""

from typing import Annotated

import typer

from tritonlive.wire.environment import GRAMMAR_VARIABLES
from tritonlive.wire.limits import GrammarDefaults

GRAMMARS = "Structured outputs"

GrammarTimeout = Annotated[
    float,
    typer.Option(
        "--grammar-timeout",
        metavar="SECONDS",
        min=0.1,
        envvar=GRAMMAR_VARIABLES["timeout_s"],
        help="Time limit for compiling a new schema, regex or grammar.",
        rich_help_panel=GRAMMARS,
    ),
]
GrammarMemory = Annotated[
    int,
    typer.Option(
        "--grammar-memory",
        metavar="MIB",
        min=64,
        envvar=GRAMMAR_VARIABLES["memory_mib"],
        help="Memory limit for compiling one.",
        rich_help_panel=GRAMMARS,
    ),
]
GrammarMaxBytes = Annotated[
    int,
    typer.Option(
        "--grammar-max-bytes",
        metavar="BYTES",
        min=1,
        envvar=GRAMMAR_VARIABLES["max_bytes"],
        help="Largest schema, regex or grammar.",
        rich_help_panel=GRAMMARS,
    ),
]
GrammarMaxValues = Annotated[
    int,
    typer.Option(
        "--grammar-max-values",
        metavar="N",
        min=1,
        envvar=GRAMMAR_VARIABLES["max_values"],
        help="Most values in a schema, at all depths, or in a list of choices.",
        rich_help_panel=GRAMMARS,
    ),
]


def to_environment(limits: GrammarDefaults) -> dict[str, str]:
    """The limits as the model reads them (tritonlive/backend/grammars/limits.py)."""
    return {variable: str(getattr(limits, name)) for name, variable in GRAMMAR_VARIABLES.items()}
