"""The order of weight versions."""

import string


def staleness_reason(version: str, minimum: str) -> str | None:
    """None if weights of `version` are those of `minimum` or newer, else a sentence that says why not.

    Versions are free strings. Equal ones satisfy each other. Of two that differ in nothing but the integer at their
    end, the one with the larger integer is newer; others have no order. (The model has the same rule,
    tritonlive/backend/weights/versions.py; a test compares them.)
    """
    if version == minimum:
        return None
    (text, number), (minimum_text, minimum_number) = split(version), split(minimum)
    if text != minimum_text or not number or not minimum_number:
        return (
            f"the server's weights are {version!r}, which cannot be compared with the {minimum!r} asked for: only "
            "versions that differ in nothing but the integer at their end have an order"
        )
    # By length first: integers without leading zeros, of any size.
    if (len(number), number) >= (len(minimum_number), minimum_number):
        return None
    return f"the server's weights are {version!r}, older than the {minimum!r} asked for"


def split(version: str) -> tuple[str, str]:
    """`version` as its text and the integer at its end: `("step-", "7")` of `step-007`; the second is empty if none."""
    text = version.rstrip(string.digits)
    digits = version[len(text) :]
    return text, digits.lstrip("0") or digits[:1]
