"""Versions in response headers."""

import string
from urllib.parse import quote

# A version is any string, a header's value is not: the rest, a line's end above all, is percent-encoded.
PLAIN = string.punctuation.replace("%", "")


def header_value(version: str) -> str:
    return quote(version, safe=PLAIN)
