"""`python -m sync`: the commands of `tritonlive` that need no server on this machine."""

from . import adapters, state, weights
from .assembly import assemble

app = assemble(
    "Push weights into running tritonlive servers, and look at what they serve. [bold]tritonlive[/bold] has the same "
    "commands.",
    *(weights, state, adapters),
    has_completion=False,
)
