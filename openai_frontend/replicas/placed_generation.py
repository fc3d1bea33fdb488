"""A generation as a replica keeps it."""

from dataclasses import dataclass


@dataclass
class PlacedGeneration:
    """A generation that runs at a replica, or is about to."""

    request_id: str
    payload: bytes | None
    """The encoded request; None from the first token on, because no other replica can continue the generation."""
    is_second_try: bool = False
