"""What a front end needs to count tokens that the model keeps until their generation ends.

A generation that is answered whole sends its plain tokens with its last one, in one message. vLLM's serving metrics
count steps and the time between tokens, so the steps travel as numbers: for each step of the engine its time, its
tokens, and how long each generation's token took. A step costs some bytes, however many generations it served.
"""

import msgspec


class KeptStep(msgspec.Struct, array_like=True, gc=False):
    """The tokens of one engine step that the model keeps."""

    timestamp: float
    """The engine's monotonic clock, seconds: `EngineCoreOutputs.timestamp`."""
    num_tokens: int
    latencies: dict[float, int]
    """Seconds since a generation's token before, to the number of generations: mostly one entry."""


class KeptTokens(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Travels with one EngineCoreOutputs, as one more field at its end, which other readers of that struct ignore."""

    steps: list[KeptStep] = []
    """Steps since the last message."""
    released: dict[str, tuple[float, int]] = {}
    """Outputs of this message that bring kept tokens, by request id: when the last of these was made, and how many."""
    is_counted: bool = False
    """Whether the message brings kept tokens only: all of them were in `steps`, of this message or of earlier ones."""
