"""Versions in response headers."""

import string
from urllib.parse import quote

# A version is any string, but a header's value is not: all other characters, above all line ends, are percent-encoded.
PLAIN = string.punctuation.replace("%", "")


def header_value(version: str) -> str:
    return quote(version, safe=PLAIN)
