"""Child process of test_child.py: answers with the question, and prints other output."""

import os
import sys
from typing import Any

from bench.child import serve


def answer(question: dict[str, Any]) -> Any:
    print("a library prints")  # noqa: T201 - that is the point
    if question.get("die"):
        print("last words", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(3)
    return question | {"arguments": sys.argv[1:]}


if __name__ == "__main__":
    serve(lambda: answer)
