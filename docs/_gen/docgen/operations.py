"""Every control operation, read from the wire's one table."""

from importlib import import_module
from importlib.util import find_spec

WIRE_REFERENCE = "tritonlive.wire.reference"


def operations_table() -> str:
    if find_spec(WIRE_REFERENCE) is None:
        return "The table of control operations is not in this version."
    return import_module(WIRE_REFERENCE).operations_markdown()
