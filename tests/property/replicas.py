"""A replica as the sequences drive it: the model's own Weights and Control over real workers."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sync.weights.checkpoint_files import CheckpointFiles
from sync.weights.digest import tensor_digest
from tritonlive.backend.control import Control
from tritonlive.backend.tensors import RequestError
from tritonlive.backend.weights.history import InFlight
from tritonlive.backend.weights.weights import Weights
from tritonlive.wire.outcomes import CHECKPOINT_ID

from .contents import Content, write_checkpoint
from .coverage import Coverage
from .engine import StandInEngine
from .labels import Labels
from .ranks import Rank, Ranks, Worker

# A control call renews its lease and waits for one lock; nothing here takes longer, or something is stuck.
SETTLE_TIMEOUT_S = 20.0


class Disk:
    """The folder with the checkpoint, shared by all replicas, and all contents it has had."""

    def __init__(self, folder: Path, content: Content) -> None:
        self.folder = folder
        self.content = content
        self._seen: dict[str | None, Content] = {}
        self._note()

    def overwrite(self, content: Content) -> None:
        write_checkpoint(self.folder, content)
        self.content = content
        self._note()

    def content_of(self, fingerprint: str | None) -> Content | None:
        return self._seen.get(fingerprint)

    def _note(self) -> None:
        self._seen[CheckpointFiles(self.folder).fingerprint()] = self.content


class Replica:
    """One replica, its engine and what it has done wrong. Lives on `loop`, driven from another thread."""

    def __init__(
        self,
        name: str,
        ranks: list[Rank],
        reference: Ranks,
        disk: Disk,
        labels: Labels,
        coverage: Coverage,
        loop: asyncio.AbstractEventLoop,
        vllm: threading.Lock,
    ) -> None:
        self.name = name
        self.disk = disk
        self.labels = labels
        self.coverage = coverage
        self.loop = loop
        self.num_deaths = 0
        self._reference = reference
        self._running_calls = 0
        self._state_at_death = ""
        self.engine: Any = StandInEngine(ranks, loop, vllm, self._watch)
        # Before the hook of Weights, which changes the state.
        self.engine.on_death(self._note_death)
        announced: list[str] = []
        self.weights = Weights(self.engine, announced.append)
        unused: Any = SimpleNamespace()  # adapters
        self.control = Control(self.engine, self.weights, unused, InFlight(), lambda: None)
        self.engine.on_start(self._note_start)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run on the model's loop and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SETTLE_TIMEOUT_S)

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The field of `status`."""
        if not self.engine.is_running:
            return "restarting"
        state = str(self.weights.state)
        return "paused" if state == "serving" and self.weights.replica.is_paused else state

    @property
    def label(self) -> str:
        """Label of the served weights, whether it generates or not."""
        return self.engine.llm.weight_version

    @property
    def refuses(self) -> bool:
        """Whether requests are turned away."""
        if not self.engine.is_running:
            return True
        try:
            self.weights.replica.check_can_generate()
        except RequestError:
            return True
        return False

    def content(self) -> Content | None:
        """The content that all ranks have loaded; None if they differ or the content is unknown."""
        digests = {worker.model: rank.digest() for worker, rank in zip(self.workers, self.engine._ranks, strict=True)}
        found = set(digests.values())
        return self._reference.content_of(found.pop()) if len(found) == 1 else None

    def serves(self) -> Content | None:
        """The content that answers requests now; None if requests are refused."""
        if self.refuses or self.engine.llm.scheduler.asleep:
            return None
        return self.run(self.engine.in_process(self.content))

    @property
    def workers(self) -> list[Worker]:
        return self.engine.llm.workers

    def settle(self) -> None:
        """Until no call is under way and the engine is back."""
        self.run(self._settle())

    async def _settle(self) -> None:
        while self._running_calls or self.engine._restarts:  # noqa: ASYNC110 - two things to wait for, and no hurry
            await asyncio.sleep(0.002)

    async def released(self, timeout_s: float) -> bool:
        """Until no trainer is connected and no update runs."""
        give_up = self.loop.time() + timeout_s
        while self.weights.lease.is_held or self.weights.updates.running is not None:
            if self.loop.time() > give_up:
                return False
            await asyncio.sleep(0.005)
        return True

    # ---- control --------------------------------------------------------------------------------------------------

    async def call(self, request: Any, name: str) -> str:
        """A control call, whose effect on the state is noted."""
        before = self.state
        history = self.weights.history
        last = history.last
        self._running_calls += 1
        failed = True
        try:
            result = await self.control.run(request)
            failed = False
            return result
        finally:
            self._running_calls -= 1
            record = history.last
            begun = record if record is not last else None
            self.coverage.enter(before, cause_of(name, failed, record, begun), self.state)

    # ---- what is wrong --------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Contradictions between the content, the label, and the replica's own status."""
        found = [f"{self.name}: {violation}" for violation in self.engine.violations]
        self.engine.violations.clear()
        if self.engine.is_running:
            found += [f"{self.name}: {problem}" for problem in self.run(self.engine.in_process(self._find_problems))]
        return found

    def _find_problems(self) -> list[str]:
        scheduler = self.engine.llm.scheduler
        problems = []
        is_served = not self.refuses and not scheduler.asleep
        if is_served and (reason := self.labels.reject_reason(self.label, self.content())):
            problems.append(f"{reason} (state {self.state})")
        if scheduler.can_generate and scheduler.has_stale_cache and not self.refuses:
            problems.append("generates with caches of older weights")
        if self.weights.updates.running is not None and not self.weights.lease.is_held:
            problems.append("an update runs without a trainer")
        for rank, worker in zip(self.engine._ranks, self.workers, strict=True):
            problems += [f"rank {worker.rank}: {each}" for each in self._wrong_history(rank, worker)]
        return problems

    def _wrong_history(self, rank: Rank, worker: Worker) -> list[str]:
        """Errors in a worker's records of its model or its kept versions."""
        history = worker.weights.history
        wrong = []
        for entry in history._entries.values():
            bad = [meta.name for meta, value in entry.digests.items() if not self._is_intact(entry, meta.name, value)]
            if bad:
                wrong.append(f"keeps other bytes than pushed as {entry.update_id}: {', '.join(bad)}")
        if history.current is None or "weights" in self.engine.llm.scheduler.asleep:
            return wrong
        held = self._reference.content_of(rank.digest())
        if history.current == CHECKPOINT_ID or history.current.startswith(f"{CHECKPOINT_ID}-"):
            claimed = self.disk.content_of(worker.weights.report()["checkpoint"]["fingerprint"])
            if held is not claimed:
                wrong.append(f"claims to hold the checkpoint {claimed}, holds {held}")
        elif (entry := history.entry(history.current)) is not None and (held is None or held.digest != entry.digest):
            wrong.append(f"claims to hold {history.current}, holds {held}")
        return wrong

    @staticmethod
    def _is_intact(entry: Any, name: str, value: int) -> bool:
        return entry.tensors is None or tensor_digest(entry.tensors[name]) == value

    def _watch(self, why: str) -> None:
        """The scheduler runs from now on. Its output must be that of the label."""
        reason = self.labels.reject_reason(self.label, self.content())
        if reason:
            self.engine.violations.append(f"{why}: {reason}")

    def _note_death(self, _reason: str) -> None:
        self.num_deaths += 1
        self._state_at_death = str(self.weights.state)
        self.coverage.enter(self._state_at_death, "engine died", "restarting")

    def _note_start(self, llm: Any) -> None:
        """The new engine's label, if it is a new one, denotes what is on disk."""
        if not self.labels.is_known(llm.weight_version):
            self.labels.attempt(llm.weight_version, self.disk.content)
        self.coverage.enter("restarting", "engine started", str(self.weights.state))


def cause_of(name: str, failed: bool, record: Any, begun: Any) -> str:
    """The edge's name: the operation and its outcome."""
    shown = CAUSES.get(name, name)
    if name == "finish_weight_update":
        if not failed:
            return "unchanged" if record.outcome == "unchanged" else "committed"
        return "commit failed"
    if name in ("rollback", "reload", "prepare_weight_update"):
        return f"{shown} failed" if failed and (begun is not None or name.startswith("prepare")) else shown
    return shown


CAUSES: dict[str, str] = {
    "start_weight_update": "start",
    "abort_weight_update": "abort",
    "prepare_weight_update": "prepare",
    "pause_generation": "pause",
    "resume_generation": "resume",
    "reset_weights": "reset",
}


def each(replicas: list[Replica], call: Callable[[Replica], Any]) -> list[Any]:
    return [call(replica) for replica in replicas]
