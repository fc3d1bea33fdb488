"""The names of weight versions: their order, and what a push is called if its trainer does not say."""

import re
import string
from collections.abc import Iterable

# vLLM's label of the weights with which an engine starts.
FIRST_VERSION = "default"


def staleness_reason(version: str, minimum: str) -> str | None:
    """None if weights of `version` are those of `minimum` or newer, else a sentence that says why not.

    Versions are free strings. Equal ones satisfy each other. If two differ only in the integer at their end, the one
    with the larger integer is newer. Others have no order.
    """
    if version == minimum:
        return None
    (text, number), (minimum_text, minimum_number) = split_number(version), split_number(minimum)
    if text != minimum_text or not number or not minimum_number:
        return (
            f"the server's weights are {version!r}, which cannot be compared with the requested {minimum!r}: only "
            "versions that differ only in the integer at their end have an order"
        )
    # By length first: integers without leading zeros, of any size.
    if (len(number), number) >= (len(minimum_number), minimum_number):
        return None
    return f"the server's weights are {version!r}, older than the requested {minimum!r}"


def split_number(version: str) -> tuple[str, str]:
    """`version` as its text and the integer at its end, without leading zeros; the second is empty without one.

    `("step-", "7")` of `step-007`.
    """
    text = version.rstrip(string.digits)
    digits = version[len(text) :]
    return text, digits.lstrip("0") or digits[:1]


def next_version(versions: Iterable[str | None]) -> str:
    """ "v<n+1>" after the highest "v<n>" among `versions`."""
    numbers = [re.fullmatch(r"v(\d+)", str(version)) for version in versions]
    return f"v{max((int(number[1]) for number in numbers if number), default=0) + 1}"


def newest_numbered(versions: Iterable[str | None]) -> str | None:
    """The highest "v<n>" among `versions`; None when there is none."""
    numbered = [version for version in versions if version is not None and re.fullmatch(r"v\d+", version)]
    return max(numbered, key=lambda version: int(version[1:]), default=None)


def next_step(version: str) -> str:
    """Version of TRL's next push: "step-<n>" with n = 1 + the number at the end of `version`, else "step-0"."""
    number = re.search(r"(\d+)$", version)
    return f"step-{int(number[1]) + 1 if number else 0}"
