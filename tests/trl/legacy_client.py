"""Calls TRL's client as a program: `python legacy_client.py URL`, calls as JSON in, results as JSON out.

In: {name: [method, keyword arguments]}. Out: {name: result}, and which TRL it was. Infinities and NaN as Python's json.
"""

import json
import sys

import trl
from trl.generation.vllm_client import VLLMClient


def main() -> None:
    calls = json.load(sys.stdin)
    client = VLLMClient(sys.argv[1])
    results = {name: getattr(client, method)(**arguments) for name, (method, arguments) in calls.items()}
    print(json.dumps({"trl": [trl.__version__, trl.__file__], **results}))  # noqa: T201 - the result is what it prints


if __name__ == "__main__":
    main()
