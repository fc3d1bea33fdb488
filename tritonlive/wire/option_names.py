"""What an error about a command line option says: its name, and the nearest one that exists."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

UNRECOGNIZED = "unrecognized arguments: "
"""How argparse's message begins; the arguments follow, with their values."""
NUMBER = re.compile(r"-[\d.]")


def unrecognized(arguments: Iterable[str], known: Collection[str]) -> str:
    """`unrecognized arguments: --max-modle-len; did you mean --max-model-len?`.

    arguments: the words that no option takes. Values of unknown options are left out, if there is an option at all.
    """
    words = list(arguments)
    options = [word.partition("=")[0] for word in words if word.startswith("-") and not NUMBER.match(word)]
    near = dict.fromkeys(match for option in options for match in get_close_matches(option, known, n=1))
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return UNRECOGNIZED + " ".join(options or words) + hint


def completed(message: str, known: Collection[str]) -> str:
    """argparse's message, with the nearest names if it is about unrecognized arguments."""
    if not message.startswith(UNRECOGNIZED):
        return message
    return unrecognized(message.removeprefix(UNRECOGNIZED).split(), known)


def no_such_name(option: str, name: str, names: Iterable[str]) -> str:
    """`--tool-call-parser hermess: no such name; did you mean hermes? Valid: …`."""
    valid = sorted(names)
    near = get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{option} {name}: no such name{hint} Valid: {', '.join(valid)}"
