"""Whether a replica may generate: the state of its weights, and whether somebody has paused it."""

from enum import StrEnum

from vllm.v1.engine import PauseMode

from .engine import Engine
from .tensors import Unavailable
from .worker_calls import Workers


class State(StrEnum):
    SERVING = "serving"
    UPDATING = "updating"
    DIRTY = "dirty"
    """What the model holds is not known."""
    FENCED = "fenced"
    """The model holds other weights than the rest of its fleet."""


REFUSING = frozenset({State.DIRTY, State.FENCED})


class ReplicaState:
    """The state, its reason, and the engine's scheduler, which is paused and resumed accordingly.

    An update that has not committed changes nothing of what the model holds: a replica that refuses does so until the
    commit, although its state is then "updating".
    """

    def __init__(self, engine: Engine, workers: Workers) -> None:
        self.resting = State.SERVING
        """Apart from a running update: serving, dirty or fenced."""
        self.reason: str | None = None
        self.is_updating = False
        self.is_paused = False
        """Whether a client has paused generation."""
        self._engine = engine
        self._workers = workers

    @property
    def state(self) -> State:
        return State.UPDATING if self.is_updating else self.resting

    @property
    def is_refusing(self) -> bool:
        return self.resting in REFUSING

    def check_can_generate(self) -> None:
        """Raises Unavailable when what would be generated could not be trusted."""
        if self.is_refusing:
            raise Unavailable(f"weights: {self.resting} ({self.reason}); push a full set of weights")

    def serve(self) -> None:
        """The weights are whole and known."""
        self.resting, self.reason = State.SERVING, None

    async def refuse(self, state: State, reason: str) -> None:
        """From now on nothing is generated; what is running ends with finish reason "abort"."""
        self.resting, self.reason = state, reason
        if self._engine.is_running:
            await self._workers.pause("abort", clear_cache=True)

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        await self._workers.pause(mode, clear_cache=clear_cache)
        self.is_paused = True

    async def resume(self) -> None:
        """End a client's pause; a replica that refuses stays paused."""
        self.is_paused = False
        await self.resume_unless_paused()

    async def resume_unless_paused(self) -> None:
        if not self.is_paused and not self.is_refusing and self._engine.is_running:
            await self._workers.resume()

    def engine_died(self) -> None:
        """The new engine is not paused, and holds its checkpoint; a fenced replica stays fenced."""
        self.is_paused = False
        if self.resting is not State.FENCED:
            self.serve()
