"""How a push reports its progress to its caller."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""
