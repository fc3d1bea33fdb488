"""What a push is called if its trainer does not say."""

import re
from collections.abc import Iterable

# What vLLM calls the weights that an engine starts with.
FIRST_VERSION = "default"


def next_version(versions: Iterable[str | None]) -> str:
    """ "v<n+1>" after the highest "v<n>" among `versions`."""
    numbers = [re.fullmatch(r"v(\d+)", str(version)) for version in versions]
    return f"v{max((int(number[1]) for number in numbers if number), default=0) + 1}"


def newest_numbered(versions: Iterable[str | None]) -> str | None:
    """The highest "v<n>" among `versions`; None when there is none."""
    numbered = [version for version in versions if version is not None and re.fullmatch(r"v\d+", version)]
    return max(numbered, key=lambda version: int(version[1:]), default=None)


def next_step(version: str) -> str:
    """What a push of TRL's is called: "step-<n>", one more than the number at the end of `version`, else "step-0"."""
    number = re.search(r"(\d+)$", version)
    return f"step-{int(number[1]) + 1 if number else 0}"
