"""A generation as a replica keeps it, and the interface that hears what becomes of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from openai_frontend.errors import TritonError
from openai_frontend.vllm_seam import EngineCoreOutputs

if TYPE_CHECKING:
    from openai_frontend.replicas.replica import Replica


@dataclass
class PlacedGeneration:
    """A generation that runs at a replica, or is about to."""

    request_id: str
    payload: bytes | None
    """The encoded request; None from the first token on, because no other replica can continue the generation."""
    is_second_try: bool = False


class ReplicaListener(Protocol):
    """Called by replicas."""

    def received(self, replica: "Replica", outputs: EngineCoreOutputs) -> None:
        """A step of the engine brought tokens or statistics."""

    def failed(self, replica: "Replica", generation: PlacedGeneration, error: TritonError) -> None:
        """The replica refused a generation, or was lost while it ran."""

    def committed(self, version: str) -> None:
        """Weights of this version went live."""

    def adapters_changed(self, replica: "Replica", announcement: str) -> str:
        """The replica announced which LoRA adapters it serves from now on; returns the announcement's serial."""
