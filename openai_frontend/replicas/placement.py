"""Where generations run: each goes to one replica, and to a second one if the first did nothing with it."""

from collections.abc import Callable

from openai_frontend.errors import TritonError
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas

OnFailure = Callable[[str, TritonError], None]
"""Gets the id of a generation that no replica took, or that one gave up, and the reason."""


class Placement:
    """Places the generations of one front-end process."""

    def __init__(self, replicas: Replicas[Replica], on_failure: OnFailure) -> None:
        self.replicas = replicas
        self._on_failure = on_failure

    def place(self, generation: PlacedGeneration, preferred: Replica | None = None) -> None:
        """Start a generation at `preferred`, if that can generate. Never raises: it may fail like a refused one."""
        replica = preferred
        if replica is None or replica.unavailable_reason is not None:
            replica = self.replicas.pick()
        if replica is None:
            self._on_failure(generation.request_id, self.replicas.unavailable())
        else:
            replica.generate(generation)

    def failed(self, replica: Replica, generation: PlacedGeneration, error: TritonError) -> None:
        """Try another replica once, if nothing was generated yet; else report the error."""
        if error.is_unavailable and generation.payload is not None and not generation.is_second_try:
            other = self.replicas.pick(other_than=replica)
            if other is not None:
                generation.is_second_try = True
                other.generate(generation)
                return
        self._on_failure(generation.request_id, error)

    def abort(self, request_ids: list[str]) -> None:
        """Give up generations, wherever they run."""
        for replica in self.replicas.members:
            replica.abort(request_ids)
