"""What a push is called if its trainer does not say."""

import re
from collections.abc import Iterable


def next_version(versions: Iterable[str | None]) -> str:
    """ "v<n+1>" after the highest "v<n>" among `versions`."""
    numbers = [re.fullmatch(r"v(\d+)", str(version)) for version in versions]
    return f"v{max((int(number[1]) for number in numbers if number), default=0) + 1}"
