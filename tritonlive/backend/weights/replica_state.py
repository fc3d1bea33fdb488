"""Whether a replica may generate: the state of its weights, and whether somebody has paused it."""

from vllm.v1.engine import PauseMode
from vllm.v1.executor.abstract import SLEEP_TAGS

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict, Unavailable
from tritonlive.wire.states import REFUSING, State

from .worker_calls import Workers


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
        self._asleep: frozenset[str] = frozenset()  # the kinds of memory that vLLM has given back
        self._engine = engine
        self._workers = workers

    @property
    def state(self) -> State:
        return State.UPDATING if self.is_updating else self.resting

    @property
    def is_refusing(self) -> bool:
        return self.resting in REFUSING

    @property
    def are_weights_asleep(self) -> bool:
        return "weights" in self._asleep

    def require_awake(self, operation: str) -> None:
        """Raises Conflict while the weights are asleep: what is loaded then is lost when vLLM brings the old ones back.

        Asleep may be the KV cache: a trainer wakes the weights first, pushes, and wakes the rest.
        """
        if self.are_weights_asleep:
            raise Conflict(f'{operation}: the weights are asleep; call wake_up first (tags: ["weights"] or none)')

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

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Give memory back; from level 2 on the weights are lost, also when vLLM fails half-way."""
        if level >= 2:
            self.resting, self.reason = State.DIRTY, f"sleep level {level} discarded the weights"
        if level >= 1:
            self._asleep = SLEEP_TAGS
        await self._workers.sleep(level, mode)

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Whether the engine is awake as a whole."""
        is_awake = await self._workers.wake_up(tags)
        woken = frozenset(tags) - {"scheduling"} if tags else SLEEP_TAGS
        if is_awake:
            self._asleep = frozenset()
        elif woken <= self._asleep or not tags:  # else vLLM wakes nothing
            self._asleep -= woken
        if is_awake and (self.is_paused or self.is_refusing):  # vLLM resumes by itself
            await self._workers.pause("abort", clear_cache=True)
        return is_awake

    async def resume(self) -> None:
        """End a client's pause; a replica that refuses stays paused, and so does one that is asleep."""
        self.is_paused = False
        await self.resume_unless_paused()

    async def resume_unless_paused(self) -> None:
        if not self.is_paused and not self.is_refusing and not self._asleep and self._engine.is_running:
            await self._workers.resume()

    def engine_died(self) -> None:
        """The new engine is awake and not paused, and holds its checkpoint; a fenced replica stays fenced."""
        self.is_paused = False
        self._asleep = frozenset()
        if self.resting is not State.FENCED:
            self.serve()
