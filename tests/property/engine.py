"""The part of vLLM's engine that the model uses: real workers, no scheduler, and a death at any call.

Any other method or attribute raises AttributeError. `Scheduler` remembers what counts for a label: whether tokens could
be made now, whether their caches are of older weights, and what is asleep.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.engine.exceptions import EngineDeadError

from sync.weights.checkpoint_source import CheckpointSource
from tritonlive.backend.settings import Settings
from tritonlive.backend.tensors import Unavailable

from .ranks import Rank, Worker

KEY = "control-key"
# As the supervisor's look for a dead engine, and vLLM's start, only shorter.
NOTICE_S, START_S = 0.005, 0.02
RANK_FAILURES = frozenset({"before", "half", "after", "rejected", "failed"})
REPLACING = frozenset({"load", "restore", "reload", "reset"})


@dataclass(frozen=True)
class EngineFault:
    """The fault of the next call of that name (a worker operation, or a method of the engine)."""

    call: str
    how: str
    """die_before, die_after: the engine; raise, raise_after: the call; refuse: reset_prefix_cache; RANK_FAILURES:
    `rank` (None: all), as Worker.run has them."""
    rank: int | None = None


@dataclass
class Scheduler:
    """Scheduler of one engine."""

    is_paused: bool = False
    has_stale_cache: bool = False
    asleep: set[str] = field(default_factory=set)

    @property
    def can_generate(self) -> bool:
        return not self.is_paused and not self.asleep


class Llm:
    """One engine's life: AsyncLLM as far as weights and control need it."""

    def __init__(self, engine: "StandInEngine", workers: list[Worker]) -> None:
        self.vllm_config = workers[0].vllm_config
        self.model_config = self.vllm_config.model_config
        self.engine_core = self
        self.workers = workers
        self.scheduler = Scheduler()
        self.errored = False
        self.weight_version = "default"
        self._engine = engine
        self._offloaded: list[dict[str, torch.Tensor]] = []

    # ---- vLLM's methods -------------------------------------------------------------------------------------------

    async def get_weight_version(self) -> str:
        return await self._call("get_weight_version", lambda _fault: self.weight_version)

    async def update_weight_version(self, new_version: str) -> None:
        def update(_fault: EngineFault | None) -> None:
            self.weight_version = new_version

        await self._call("update_weight_version", update)

    async def call_utility_all_async(self, method: str, *arguments: Any) -> list[list[dict[str, Any]]]:
        """The workers' answers, engine by engine. A method of the engine core's client."""
        name, timeout, (operation, options), kwargs = arguments
        if (method, name, timeout, kwargs) != ("collective_rpc", "weight_operation", None, None):
            raise AttributeError(f"unexpected utility call {method} {arguments}")

        def run(fault: EngineFault | None) -> list[list[dict[str, Any]]]:
            replaces = operation in REPLACING and options.get("update_id") != self._common_version()
            if replaces and self.scheduler.can_generate:
                self._engine.violations.append(f"{operation} while the scheduler runs")
            answers = []
            for worker in self.workers:
                is_hit = fault is not None and fault.rank in (None, worker.rank)
                fails = fault.how if fault is not None and is_hit and fault.how in RANK_FAILURES else None
                answers.append(worker.run(operation, options, fails))
            if operation in REPLACING and any(answer["code"] in ("ok", "touched") for answer in answers):
                self.scheduler.has_stale_cache = True
            return [answers]

        return await self._call(operation, run)

    async def pause_scheduler_async(self, mode: str = "abort", *, clear_cache: bool = True) -> None:
        def pause(_fault: EngineFault | None) -> None:
            self.scheduler.is_paused = True

        await self._call("pause_scheduler", pause)

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        def pause(_fault: EngineFault | None) -> None:
            self.scheduler.is_paused = True

        await self._call("pause_generation", pause)

    async def resume_generation(self) -> None:
        def resume(_fault: EngineFault | None) -> None:
            self.scheduler.is_paused = False
            if self.scheduler.asleep:
                self._engine.violations.append(f"resumed while asleep: {sorted(self.scheduler.asleep)}")
            self._engine.generate("resume")

        await self._call("resume_generation", resume)

    async def is_paused(self) -> bool:
        return await self._call("is_paused", lambda _fault: self.scheduler.is_paused)

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        def reset(fault: EngineFault | None) -> bool:
            if fault is not None and fault.how == "refuse":
                return False
            if reset_running_requests and reset_connector:
                self.scheduler.has_stale_cache = False
            return True

        return await self._call("reset_prefix_cache", reset)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        def sleep(_fault: EngineFault | None) -> None:
            self.scheduler.is_paused = True
            if level < 1 or "weights" in self.scheduler.asleep:
                return
            self.scheduler.asleep = {"weights", "kv_cache"}
            models = [worker.model for worker in self.workers]
            self._offloaded = [memory_of(model) for model in models] if level == 1 else []
            for model in models:
                for tensor in tensors_of(model).values():
                    tensor.fill_(float("nan"))

        await self._call("sleep", sleep)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        def wake(_fault: EngineFault | None) -> bool:
            scheduler = self.scheduler
            woken = set(tags) if tags else set(scheduler.asleep)
            if not woken <= scheduler.asleep:
                woken = set()
            if "weights" in woken:
                for worker, memory in zip(self.workers, self._offloaded, strict=False):
                    for name, tensor in tensors_of(worker.model).items():
                        tensor.copy_(memory[name])
                self._offloaded = []
            scheduler.asleep -= woken
            if not scheduler.asleep:
                scheduler.is_paused = (
                    False  # vLLM resumes by itself; running requests were aborted when it went to sleep
                )
            return not scheduler.asleep

        return await self._call("wake_up", wake)

    async def is_sleeping(self) -> bool:
        return await self._call("is_sleeping", lambda _fault: bool(self.scheduler.asleep))

    # ---- what happens in a call -----------------------------------------------------------------------------------

    async def _call(self, name: str, run: Callable[[EngineFault | None], Any]) -> Any:
        if self.errored:
            raise EngineDeadError
        fault = self._engine.take_fault(name)
        how = fault.how if fault is not None else ""
        if how == "die_before":
            await self._die()
        if how == "raise":
            raise Exception(f"Call to {name} failed: as the sequence wants it")
        # In the engine's process one call comes after another, and the model's loop goes on meanwhile.
        result = await self._engine.in_process(lambda: run(fault))
        if how == "raise_after":
            raise Exception(f"Call to {name} failed: after it was done")  # as vLLM's
        if how == "die_after" or self.errored:
            await self._die()
        return result

    async def _die(self) -> None:
        """The engine ends; vLLM does not end a call that is under way."""
        self._engine.kill()
        await asyncio.Event().wait()

    def _common_version(self) -> str | None:
        """Id of the version that all ranks hold, or None. Restoring it replaces nothing."""
        current = {worker.weights.history.current for worker in self.workers}
        return current.pop() if len(current) == 1 else None


class StandInEngine:
    """The model's `Engine`: starts `Llm`, and starts it again with the checkpoint's weights when it has died."""

    def __init__(
        self, ranks: list[Rank], loop: asyncio.AbstractEventLoop, vllm: threading.Lock, watch: Callable[[str], None]
    ) -> None:
        """vllm: held while a model is worked on. Real engines have a process each; here they share vLLM's globals.

        `watch` is called, in the engine's process, whenever tokens could be made from now on.
        """
        self.loop = loop
        self.settings = Settings([], KEY)
        self.arguments = SimpleNamespace(model=ranks[0].vllm_config.model_config.model)
        self.argv: list[str] = []
        self.started_at = 0.0
        self.num_restarts = 0
        self.died: asyncio.Future[None] = loop.create_future()
        self.violations: list[str] = []
        self.faults: list[EngineFault] = []
        self._ranks = ranks
        self._vllm = vllm
        self._watch = watch
        self._llm: Llm | None = None
        self._on_start: list[Callable[[Any], Awaitable[None] | None]] = []
        self._on_death: list[Callable[[str], None]] = []
        self._process = ThreadPoolExecutor(1, "engine-process")
        self._restarts: set[asyncio.Task[None]] = set()

    @property
    def llm(self) -> Llm:
        if not self.is_running:
            raise Unavailable("engine: died and is being started again")
        assert self._llm is not None
        return self._llm

    @property
    def is_running(self) -> bool:
        return self._llm is not None and not self._llm.errored

    def on_start(self, hook: Callable[[Any], Awaitable[None] | None]) -> None:
        self._on_start.append(hook)

    def on_death(self, hook: Callable[[str], None]) -> None:
        self._on_death.append(hook)

    def kill(self) -> None:
        if self._llm is not None and not self._llm.errored:
            self._llm.errored = True
            task = self.loop.create_task(self._restart(self._llm))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)

    async def start(self) -> None:
        """Start an engine as Engine._start_llm does."""
        llm = await self.in_process(self._boot)
        for hook in self._on_start:
            if (pending := hook(llm)) is not None:
                await pending
        self.died = self.loop.create_future()
        self._llm = llm

    async def stop(self) -> None:
        """End everything that belongs to this engine; the ranks' models stay."""
        while self._restarts:
            await asyncio.gather(*self._restarts)
        if self._llm is not None:
            await self.in_process(lambda: disconnect(self.llm.workers))
        self._process.shutdown(wait=False)

    async def in_process(self, call: Callable[[], Any]) -> Any:
        def run() -> Any:
            with self._vllm:
                return call()

        return await self.loop.run_in_executor(self._process, run)

    def take_fault(self, call: str) -> EngineFault | None:
        found = next((fault for fault in self.faults if fault.call == call), None)
        if found is not None:
            self.faults.remove(found)
        return found

    def generate(self, _why: str) -> None:
        """Note that the engine could generate tokens now."""
        self._watch(_why)

    async def _restart(self, dead: Llm) -> None:
        await asyncio.sleep(NOTICE_S)
        self._llm = None
        self.died.set_result(None)
        for hook in self._on_death:
            hook("the engine died and is being started again")
        await self.in_process(lambda: disconnect(dead.workers))
        await asyncio.sleep(START_S)
        await self.start()
        self.num_restarts += 1

    def _boot(self) -> Llm:
        """vLLM's start: the checkpoint as it is on disk now, and workers that know nothing."""
        source = CheckpointSource(self.arguments.model)
        for rank in self._ranks:
            rank.load(source)
        return Llm(self, [Worker(rank) for rank in self._ranks])


def disconnect(workers: list[Worker]) -> None:
    for worker in workers:
        worker.weights.disconnect()


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters: sleep discards them. vLLM keeps the buffers."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def memory_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}
