"""Versions in response headers."""

import string
from urllib.parse import quote

# A version may be any string, a header's value may not. All other characters, line ends above all, are percent-encoded.
PLAIN = string.punctuation.replace("%", "")


def header_value(version: str) -> str:
    return quote(version, safe=PLAIN)
