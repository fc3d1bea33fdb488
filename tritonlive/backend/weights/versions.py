"""The order of weight versions, for requests that ask for a minimum."""

import string

from tritonlive.backend.tensors import Conflict


def check_minimum(version: str, minimum: str) -> None:
    """Raises Conflict unless weights of `version` are those of `minimum` or newer.

    Versions are free strings. Equal ones satisfy each other. Of two that differ in nothing but the integer at their
    end, the one with the larger integer is newer; others have no order. (The front end has the same rule,
    openai_frontend/weight_version.py; a test compares them.)
    """
    if version == minimum:
        return
    (text, number), (minimum_text, minimum_number) = split(version), split(minimum)
    if text != minimum_text or not number or not minimum_number:
        raise Conflict(
            f"min_weight_version: the server's weights are {version!r}, which cannot be compared with the {minimum!r} "
            "asked for: only versions that differ in nothing but the integer at their end have an order"
        )
    # By length first: integers without leading zeros, of any size.
    if (len(number), number) < (len(minimum_number), minimum_number):
        raise Conflict(
            f"min_weight_version: the server's weights are {version!r}, older than the {minimum!r} asked for"
        )


def split(version: str) -> tuple[str, str]:
    """`version` as its text and the integer at its end: `("step-", "7")` of `step-007`; the second is empty if none."""
    text = version.rstrip(string.digits)
    digits = version[len(text) :]
    return text, digits.lstrip("0") or digits[:1]
