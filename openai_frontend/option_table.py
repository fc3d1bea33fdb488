"""`python -m openai_frontend.option_table >tritonlive/launch/vllm_options.json`: what vLLM's command line takes.

The launcher reads the table, so that it needs no import of vLLM to say what is wrong with an option. Write it again at
every upgrade of vLLM; tests/frontend/test_arguments.py compares it.
"""

import json
import sys
from typing import Any

from openai_frontend.vllm_seam import (
    FlexibleArgumentParser,
    ReasoningParserManager,
    ToolParserManager,
    make_arg_parser,
    vllm_version,
)


def option_table() -> dict[str, Any]:
    """`vllm`: its version. `options`: all names, sorted. `choices`: the words that an option takes, if it is a list."""
    options = make_arg_parser(FlexibleArgumentParser())._option_string_actions
    choices = {
        name: sorted(action.choices)
        for name, action in options.items()
        if action.choices and all(isinstance(choice, str) for choice in action.choices)
    }
    choices["--tool-call-parser"] = ToolParserManager.list_registered()
    choices["--reasoning-parser"] = ReasoningParserManager.list_registered()
    version = vllm_version.partition("+")[0]
    return {"vllm": version, "options": sorted(options), "choices": dict(sorted(choices.items()))}


if __name__ == "__main__":
    json.dump(option_table(), sys.stdout, indent=1)
    sys.stdout.write("\n")
