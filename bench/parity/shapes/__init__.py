"""All parity requests; one module per kind."""

from bench.parity.shape import Shape
from bench.parity.shapes import bad, chats, completions, routes, structured, tools

KINDS = (completions, chats, tools, structured, routes, bad)


def all_shapes() -> list[Shape]:
    """All requests in the order of sending.

    Raises:
        ValueError: if two shapes share a name.
    """
    shapes = [shape for kind in KINDS for shape in kind.shapes()]
    names = [shape.name for shape in shapes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two parity shapes have the same name: {', '.join(twice)}")
    return shapes
