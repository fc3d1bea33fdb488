"""Whether a replica may generate: the state of its weights, and whether a client has paused it."""

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict, Unavailable
from tritonlive.backend.vllm_seam.messages import SLEEP_TAGS, PauseMode
from tritonlive.wire.states import REFUSING, State

from .worker_calls import Workers


class ReplicaState:
    """Keeps the state and its reason, and pauses and resumes the engine's scheduler accordingly.

    A replica that refuses continues to refuse until an update commits, although its state is "updating" meanwhile.
    """

    def __init__(self, engine: Engine, workers: Workers) -> None:
        self.resting = State.SERVING
        """The state without regard to a running update: serving, dirty or fenced."""
        self.reason: str | None = None
        self.is_updating = False
        self.is_paused = False
        """Whether a client has paused generation."""
        self._asleep: frozenset[str] = frozenset()  # kinds of memory that vLLM has given back
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
        """Raises Conflict while the weights are asleep: vLLM restores the old ones over anything loaded meanwhile.

        The KV cache may be asleep: a trainer wakes the weights first, pushes, and then wakes the rest.
        """
        if self.are_weights_asleep:
            raise Conflict(f'{operation}: the weights are asleep; call wake_up first (tags: ["weights"] or none)')

    def check_can_generate(self) -> None:
        """Raises Unavailable while the replica is dirty or fenced."""
        if self.is_refusing:
            raise Unavailable(f"weights: {self.resting} ({self.reason}); push a full set of weights")

    def serve(self) -> None:
        """Serve: the weights are complete and known."""
        self.resting, self.reason = State.SERVING, None

    async def refuse(self, state: State, reason: str) -> None:
        """Generate nothing from now on. Running requests end with finish reason "abort"."""
        self.resting, self.reason = state, reason
        if self._engine.is_running:
            await self._workers.pause("abort", clear_cache=True)

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        """Pause generation for a client."""
        await self._workers.pause(mode, clear_cache=clear_cache)
        self.is_paused = True

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Give memory back. From level 2 on the weights are lost, even if vLLM fails half-way."""
        if level >= 2:
            self.resting, self.reason = State.DIRTY, f"sleep level {level} discarded the weights"
        if level >= 1:
            self._asleep = SLEEP_TAGS
        await self._workers.sleep(level, mode)

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Take memory back, of the kinds in `tags` or all. Returns whether the whole engine is awake."""
        is_awake = await self._workers.wake_up(tags)
        woken = frozenset(tags) - {"scheduling"} if tags else SLEEP_TAGS
        if is_awake:
            self._asleep = frozenset()
        elif woken <= self._asleep or not tags:  # otherwise vLLM wakes nothing
            self._asleep -= woken
        if is_awake and (self.is_paused or self.is_refusing):  # vLLM has resumed by itself
            await self._workers.pause("abort", clear_cache=True)
        return is_awake

    async def resume(self) -> None:
        """End a client's pause. A replica that refuses, or is asleep, stays paused."""
        self.is_paused = False
        await self.resume_unless_paused()

    async def resume_unless_paused(self) -> None:
        """Resume the scheduler unless a client has paused it, or the replica refuses or is asleep."""
        if not self.is_paused and not self.is_refusing and not self._asleep and self._engine.is_running:
            await self._workers.resume()

    def engine_died(self) -> None:
        """The next engine starts awake, not paused, and with its checkpoint. A fenced replica stays fenced."""
        self.is_paused = False
        self._asleep = frozenset()
        if self.resting is not State.FENCED:
            self.serve()
