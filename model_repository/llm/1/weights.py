"""The replica's weights: which version serves, and the life of an update.

    serving(v) ──start──► updating(v→w) ──finish──► serving(w)
        ▲                    │
        └── abort, nothing   └── a failure once loading began ──► dirty ──a full update commits──► serving(w)
            loaded yet

A dirty replica has weights partly replaced and refuses to generate. Operations are serialised; each has a deadline.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.v1.engine import PauseMode
from vllm.v1.engine.exceptions import EngineDeadError

from .engine import Engine
from .tensors import INTERNAL, BadTensor, Conflict, RequestError, Unavailable

# A worker's call ends by its transport's own deadline; this one is for a worker that does not answer at all.
OPERATION_TIMEOUT_S = 600.0
LOCK_TIMEOUT_S = 60.0
# Engines that stage: until finish is called nothing in the model has been touched.
STAGING_BACKENDS = frozenset({"gloo"})
# What such an engine's error says when it failed before it loaded anything (see sync/gloo_worker.py).
UNTOUCHED = "the model is untouched"


class State(StrEnum):
    SERVING = "serving"
    UPDATING = "updating"
    DIRTY = "dirty"


@dataclass
class Weights:
    """State machine of one replica's weights; lives on the engine's loop."""

    engine: Engine
    announce: Callable[[str], None]  # called with every version that goes live
    state: State = State.SERVING
    reason: str | None = None
    is_paused: bool = False
    last_update: dict[str, Any] | None = None
    _update_started: float = 0.0
    _is_touched: bool = False  # whether the running update may have changed the model
    _is_connected: bool = False
    _timeout_s: float = OPERATION_TIMEOUT_S  # from start to finish, as the trainer asked
    _watch: asyncio.Task[None] | None = None  # notices that the trainer is gone
    _expiry: asyncio.Task[None] | None = None  # ends an update whose trainer hangs
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.engine.on_death(self._engine_died)

    @property
    def backend(self) -> str | None:
        config = self.engine.llm.vllm_config.weight_transfer_config
        return config.backend if config is not None else None

    async def version(self) -> str:
        return await self._answer(self.engine.llm.get_weight_version())

    def check_can_generate(self) -> None:
        """Raises Unavailable when what would be generated could not be trusted."""
        if self.state is State.DIRTY:
            raise Unavailable(f"weights: dirty ({self.reason}); push a full set of weights")

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Join the trainer's group."""
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "init_weight_transfer_engine")
            if self.backend is None:
                raise BadTensor(
                    "init_weight_transfer_engine",
                    'weight transfer is off; start vLLM with --weight-transfer-config \'{"backend": "gloo"}\'',
                )
            await self._answer(self.engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))
            self._is_connected = True
            self._timeout_s = float(init_info.get("timeout_s") or OPERATION_TIMEOUT_S)
            self._watch_trainer(init_info)

    async def disconnect(self) -> None:
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "shutdown_weight_transfer_engine")
            await self._answer(self.engine.llm.shutdown_weight_transfer_engine())
            self._is_connected = False

    async def start(self) -> None:
        """Begin an update. Idempotent until the first update_weights, since clients retry."""
        async with self._exclusive():
            if self.state is State.UPDATING:
                if self._is_touched:
                    raise Conflict("start_weight_update: an update is running; finish or abort it")
                return
            if not self._is_connected:
                raise Conflict("start_weight_update: no trainer is connected; call init_weight_transfer_engine first")
            self._is_touched = self.state is State.DIRTY or self.backend not in STAGING_BACKENDS
            await self._pause_if_touched()
            try:
                await self._answer(self.engine.llm.start_weight_update())
            except RequestError as error:
                await self._fail(f"start_weight_update failed: {error}")
                raise
            self.state = State.UPDATING
            self._update_started = time.monotonic()
            self._expiry = asyncio.create_task(self._abort_when_late())

    async def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        async with self._exclusive():
            self._require_update("update_weights")
            try:
                await self._answer(self.engine.llm.update_weights(WeightTransferUpdateRequest(update_info)))
            except RequestError as error:
                await self._fail(f"update_weights failed: {error}")
                raise

    async def finish(self, version: str | None) -> dict[str, Any]:
        """Make the update live: load, set the version and drop cached prefixes while generation is paused.

        Running requests keep what they generated and go on with the new weights; their KV cache is computed anew,
        so that no token is made from two sets of weights. Idempotent: a second finish of the same version answers
        as the first.
        """
        async with self._exclusive():
            if self.state is State.SERVING and self._is_committed(version):
                return self.last_update or {}
            self._require_update("finish_weight_update")
            llm = self.engine.llm
            paused_at = time.monotonic()
            try:
                await self._answer(llm.pause_generation(mode="keep", clear_cache=False))
                load_started = time.monotonic()
                try:
                    await self._answer(llm.finish_weight_update())
                except RequestError as error:
                    self._is_touched = self._is_touched or UNTOUCHED not in str(error)
                    raise
                self._is_touched = True
                load_s = time.monotonic() - load_started
                if version is not None:
                    await self._answer(llm.update_weight_version(version))
                await self._answer(llm.reset_prefix_cache(reset_running_requests=True))
            except RequestError as error:
                await self._fail(f"finish_weight_update failed: {error}")
                raise
            self._stop_expiry()
            self.state, self.reason, self._is_touched = State.SERVING, None, False
            live = await self.version()
            self.announce(live)
            await self._resume_unless_paused()
            now = time.monotonic()
            self.last_update = {
                "outcome": "committed",
                "weight_version": live,
                "paused_s": now - paused_at,
                "load_s": load_s,
                "total_s": now - self._update_started,
                "finished_at": time.time(),
            }
            return self.last_update

    async def abort(self, reason: str) -> None:
        """Give up a running update; nothing happens without one."""
        async with self._exclusive():
            if self.state is State.UPDATING:
                await self._fail(f"aborted: {reason}")

    async def pause(self, mode: PauseMode, clear_cache: bool) -> None:
        async with self._exclusive():
            await self._answer(self.engine.llm.pause_generation(mode=mode, clear_cache=clear_cache))
            self.is_paused = True

    async def resume(self) -> None:
        async with self._exclusive():
            self.is_paused = False
            if self.state is not State.DIRTY:
                await self._answer(self.engine.llm.resume_generation())

    async def set_version(self, version: str) -> None:
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "update_weight_version")
            await self._answer(self.engine.llm.update_weight_version(version))
            self.announce(version)

    def _watch_trainer(self, init_info: dict[str, Any]) -> None:
        """Hold an idle connection to the trainer's rendezvous: it ends when the trainer does."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        host, port = init_info.get("master_address"), init_info.get("master_port")
        if host and port:
            self._watch = asyncio.create_task(self._abort_when_gone(host, port))

    async def _abort_when_gone(self, host: str, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            try:
                await reader.read(1)
            finally:
                writer.close()
        except OSError:
            pass
        self._watch = None
        await self.abort("the trainer is gone")

    async def _abort_when_late(self) -> None:
        await asyncio.sleep(self._timeout_s)
        self._expiry = None
        await self.abort(f"not finished within the trainer's own {self._timeout_s:.0f} s")

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def mark_dirty(self, reason: str) -> None:
        self.state, self.reason = State.DIRTY, reason

    def _engine_died(self, _reason: str) -> None:
        # The new engine starts from the checkpoint: nothing of a running update is left in it.
        self.state, self.reason, self._is_touched, self.is_paused = State.SERVING, None, False, False
        self._is_connected = False
        self._stop_expiry()

    async def _fail(self, reason: str) -> None:
        """End the update; what the model holds decides between serving on and dirty."""
        self._stop_expiry()
        self._is_connected = False
        version = None
        if self.engine.is_running:
            await self._reset_worker()
            version = await self.version()
        if self._is_touched:
            self.mark_dirty(reason)
        else:
            self.state, self.reason = State.SERVING, None
            await self._resume_unless_paused()
        self.last_update = {"outcome": reason, "weight_version": version, "finished_at": time.time()}

    async def _reset_worker(self) -> None:
        """Let go of the trainer, so that the next one can connect.

        vLLM refuses to release a trainer while an update is active. Our gloo worker takes the abort and finishes
        without loading anything; vLLM's own engines fail on it, which clears the mark, too.
        """
        llm = self.engine.llm
        for call in (
            llm.update_weights(WeightTransferUpdateRequest({"abort": "given up"})),
            llm.finish_weight_update(),
            llm.shutdown_weight_transfer_engine(),
        ):
            try:
                await self._answer(call)
            except RequestError:  # a trainer that cannot be let go of is left to its group's own deadline
                continue

    async def _pause_if_touched(self) -> None:
        # An engine that writes into the model as bytes arrive must not generate meanwhile.
        if self._is_touched:
            await self._answer(self.engine.llm.pause_generation(mode="keep", clear_cache=False))

    async def _resume_unless_paused(self) -> None:
        if not self.is_paused and self.engine.is_running:
            await self._answer(self.engine.llm.resume_generation())

    def _is_committed(self, version: str | None) -> bool:
        last = self.last_update
        return last is not None and last["outcome"] == "committed" and last["weight_version"] == version

    def _require_update(self, operation: str) -> None:
        if self.state is not State.UPDATING:
            raise Conflict(f"{operation}: no update is running (state: {self.state}); call start_weight_update first")

    def _refuse_while(self, state: State, operation: str) -> None:
        if self.state is state:
            raise Conflict(f"{operation}: not while {state}; finish or abort the update first")

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._lock.acquire(), LOCK_TIMEOUT_S)
        except TimeoutError:
            raise Conflict(f"weights: another operation has been running for {LOCK_TIMEOUT_S:.0f} s") from None
        try:
            yield
        finally:
            self._lock.release()

    @staticmethod
    async def _answer(call: Awaitable[Any]) -> Any:
        """An engine call's answer within the deadline, its failure as a RequestError."""
        try:
            return await asyncio.wait_for(call, OPERATION_TIMEOUT_S)
        except TimeoutError:
            raise RequestError(f"engine: no answer within {OPERATION_TIMEOUT_S:.0f} s", INTERNAL) from None
        except EngineDeadError:
            raise Unavailable("engine: died and is being started again; try again in a minute") from None
        except RequestError:
            raise
        except Exception as error:  # vLLM's utility calls wrap whatever a worker raised in a bare Exception
            raise RequestError(str(error)) from None
