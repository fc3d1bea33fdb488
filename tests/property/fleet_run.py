"""One run of a sequence: a fleet of two replicas, its trainers, and each step's promise."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

import torch

from sync.control.target import Target
from sync.errors import CommitError, SyncError
from sync.push import weight_sync
from sync.push.report import PushReport
from sync.push.weight_sync import WeightSync
from tritonlive.wire.operations.engine import InFlightMode

from .clients import LATE_S, InProcessControl, TrainerKilled, Wire, WireFault
from .contents import Content, merge
from .coverage import Coverage
from .engine import EngineFault
from .labels import Labels
from .ranks import Rank, Ranks
from .replicas import Disk, Replica
from .steps import REPLICAS, Step

PUSH_TIMEOUT_S = 8.0
LEASE_S = 2.0
SHORT_LEASE_S = 1.0
RELEASE_TIMEOUT_S = 5.0


class Mislabelled(Exception):
    """A replica serves other weights than its label denotes, or a push reported something false."""


@dataclass
class Trainer:
    """A WeightSync and the wire of its clients."""

    sync: WeightSync
    wire: Wire
    keep_previous: bool
    is_mortal: bool = False


@dataclass
class World:
    """Shared by all sequences: models, contents, and the replicas' event loop."""

    reference: Ranks
    ranks: dict[str, list[Rank]]
    contents: list[Content]
    disk: Disk
    loop: asyncio.AbstractEventLoop
    vllm: threading.Lock = field(default_factory=threading.Lock)
    coverage: Coverage = field(default_factory=Coverage)


class FleetRun:
    """Runs steps, and after each compares the served weights with their label. Raises Mislabelled."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.labels = Labels()
        self.log: list[str] = []
        if world.disk.content is not world.contents[0]:
            world.disk.overwrite(world.contents[0])
        self.labels.fix("default", world.contents[0])
        self.replicas = {
            name: Replica(
                name,
                world.ranks[name],
                world.reference,
                world.disk,
                self.labels,
                world.coverage,
                world.loop,
                world.vllm,
            )
            for name in REPLICAS
        }
        self._trainers: dict[str, Trainer] = {}
        self._operator = Wire()
        self._names = itertools.count(1)
        for replica in self.replicas.values():
            replica.run(replica.engine.start())

    def run(self, steps: list[Step]) -> None:
        try:
            for step in steps:
                began = time.perf_counter()
                self._step(step)
                self.world.coverage.steps += 1
                self.log.append(f"{step}: {time.perf_counter() - began:.2f} s; {self.describe()}")
            for replica in self.replicas.values():
                self._try(lambda r=replica: self.operate(r, "wake_up"))
                self._try(lambda r=replica: self.operate(r, "resume_generation"))
            self._check("the end")
            self._require_healing()
        finally:
            self.close()

    def close(self) -> None:
        for name in list(self._trainers):
            self._leave(name)
        for replica in self.replicas.values():
            replica.settle()
            replica.run(replica.engine.stop())

    def describe(self) -> str:
        parts = [
            f"{name}: {replica.state} {replica.label if replica.engine.is_running else '-'}"
            for name, replica in self.replicas.items()
        ]
        return ", ".join(parts)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        options = step.options
        getattr(self, f"_do_{step.kind}")(**options)
        self._settle()
        self._check(str(step))

    def _do_push(
        self, content: int | str, is_named: bool, in_flight: str, keep_previous: bool, fault: dict[str, Any] | None
    ) -> None:
        chosen = self._choose(content)
        kind = fault["kind"] if fault is not None else ""
        trainer = self._trainer("a", keep_previous=keep_previous, is_mortal=kind == "trainer")
        tensors = dict(chosen.tensors)
        if kind == "nan":
            tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
        elif kind == "shape":
            tensors["model.norm.weight"] = torch.ones(3)
        self._push(trainer, chosen, tensors, f"p{next(self._names)}" if is_named else None, in_flight, fault)

    def _do_partial(self, content: int, tensors: int) -> None:
        trainer = self._trainer("a", keep_previous=True)
        part = self.world.contents[content]
        names = frozenset(sorted(part.tensors)[:tensors])
        bases = [base for r in self.replicas.values() if (base := r.serves()) is not None]
        merged = [merge(base, part, names) for base in bases]
        for each in merged:
            self.world.reference.digest_of(each)
        known = [
            cast(Content, self.world.reference.content_of(self.world.reference.digest_of(each))) for each in merged
        ]
        label = f"p{next(self._names)}"
        self.labels.attempt(label, *known)
        try:
            trainer.sync.push({name: part.tensors[name] for name in names}, label, partial=True)
        except (SyncError, TypeError) as error:
            self._note_error(error)

    def _do_second_trainer(self, content: int) -> None:
        first = self._trainers.get("a")
        is_connected = first is not None and first.sync._pusher.is_connected
        held = {name: r.weights.lease.left_s > 1.0 for name, r in self.replicas.items()}
        trainer = self._trainer("b", keep_previous=True)
        chosen = self.world.contents[content]
        label = f"p{next(self._names)}"
        pushed = self._push(trainer, chosen, dict(chosen.tensors), label, "keep", None)
        if pushed and is_connected and any(held.values()):
            raise Mislabelled(f"a second trainer pushed {label} while another one held the lease")
        self._leave("b")

    def _do_catch_up(self) -> None:
        names = self.labels.names()
        label = next((r.label for r in self.replicas.values() if r.serves() is not None), names[-1])
        (content,) = self.labels.candidates(label)
        trainer = self._trainer("a", keep_previous=True)
        trainer.wire.content = content
        before = self._deaths()
        try:
            trainer.sync.catch_up(dict(content.tensors), label)
        except SyncError as error:
            self._note_error(error)
        else:
            self._settle()
            self._require_served(label, before, REPLICAS)

    def _do_rollback(self, to: int | str | None, fault: dict[str, Any] | None) -> None:
        trainer = self._trainer("a")
        label = self._old_label(to)
        before = self._deaths()
        with self._faults(trainer, fault):
            try:
                served = trainer.sync.rollback(label)
            except CommitError as error:
                self._note_error(error)
                self._settle()
                self._check_commit_error(error, before)
                if fault is None and not error.unknown:
                    raise Mislabelled(f"a rollback that could not work was not refused beforehand: {error}") from None
            except SyncError as error:
                self._note_error(error)
            else:
                self._settle()
                if to == "unknown":
                    raise Mislabelled(f"rolled back to {label!r}, which nobody has ever pushed")
                self._require_served(served, before, REPLICAS)

    def _do_rollback_one(self, replica: str, to: int | str | None, fault: dict[str, Any] | None) -> None:
        label = self._old_label(to)
        with self._faults(self._trainer("a"), fault):
            self._try(lambda: self._client("a", replica).rollback(to=label))

    def _do_reload(self, is_named: bool, fault: dict[str, Any] | None) -> None:
        name = self._name_reload(is_named)
        trainer = self._trainer("a")
        with self._faults(trainer, fault):
            self._try(lambda: trainer.sync.reload(name))

    def _do_reload_one(self, replica: str, is_named: bool, fault: dict[str, Any] | None) -> None:
        name = self._name_reload(is_named)
        with self._faults(self._trainer("a"), fault):
            self._try(lambda: self._client("a", replica).reload(name))

    def _do_reset(self, replica: str) -> None:
        self._try(lambda: self.operate(self.replicas[replica], "reset_weights"))

    def _do_sleep(self, replica: str, level: int, fault: str | None) -> None:
        one = self.replicas[replica]
        if fault is not None:
            one.engine.faults.append(EngineFault("sleep", fault))
        self._try(lambda: self.operate(one, "sleep", level=level))
        one.engine.faults.clear()

    def _do_wake(self, replica: str, tags: list[str] | None) -> None:
        self._try(lambda: self.operate(self.replicas[replica], "wake_up", tags=tags))

    def _do_pause(self, replica: str) -> None:
        self._try(lambda: self.operate(self.replicas[replica], "pause_generation", mode="keep"))

    def _do_resume(self, replica: str) -> None:
        self._try(lambda: self.operate(self.replicas[replica], "resume_generation"))

    def _do_fence(self, replica: str) -> None:
        self._trainer("a")
        self._try(lambda: self._client("a", replica).fence("a step of the sequence"))

    def _do_abort(self, replica: str) -> None:
        self._try(lambda: self.operate(self.replicas[replica], "abort_weight_update", force=True))

    def _do_relabel(self, replica: str) -> None:
        self._relabel(self.replicas[replica])

    def _do_kill(self, replica: str) -> None:
        self._kill(self.replicas[replica])

    def _do_overwrite(self, content: int) -> None:
        self.world.disk.overwrite(self.world.contents[content])

    def _do_leave(self) -> None:
        self._leave("a")

    # ---- a push and what it promises ------------------------------------------------------------------------------

    def _push(
        self,
        trainer: Trainer,
        content: Content,
        tensors: dict[str, torch.Tensor],
        label: str | None,
        in_flight: str,
        fault: dict[str, Any] | None,
    ) -> bool:
        """Returns whether the push returned."""
        wire = trainer.wire
        wire.content, wire.label = content, None
        held = {name: replica.serves() for name, replica in self.replicas.items()}
        before = self._deaths()
        progress = None
        if fault is not None and (fault["kind"], fault.get("call")) == ("trainer", "transfer"):

            def progress(_sent: int, _total: int) -> None:
                wire.cut()
                raise TrainerKilled

        try:
            with self._faults(trainer, fault):
                report = trainer.sync.push(tensors, label, progress=progress, in_flight=cast(InFlightMode, in_flight))
        except CommitError as error:
            self._note_error(error)
            self._settle()
            self._check_commit_error(error, before)
            if not error.committed and not error.unknown:
                self._withdraw(wire, content)
        except TrainerKilled:
            self._bury(trainer)
        except SyncError as error:
            self._note_error(error)
            self._settle()
            self._withdraw(wire, content)
        else:
            self._settle()
            self._require_served(report.version, before, REPLICAS)
            self._check_unchanged(report, content, held)
            return True
        return False

    def _withdraw(self, wire: Wire, content: Content) -> None:
        """Check the replicas after an error that says that no replica has committed."""
        if wire.label is not None and not self.labels.is_known(wire.label):
            self.labels.withdraw(wire.label, content)

    def _check_unchanged(self, report: PushReport, content: Content, held: dict[str, Content | None]) -> None:
        for target in report.unchanged:
            name = str(target).removeprefix("grpc://").partition(":")[0]
            if held[name] is not None and held[name] is not content:
                raise Mislabelled(f"{name}: {report.version} was called unchanged, it held {held[name]}")

    def _check_commit_error(self, error: CommitError, before: dict[str, int]) -> None:
        named = {
            kind: [str(target).removeprefix("grpc://").partition(":")[0] for target in targets]
            for kind, targets in (("committed", error.committed), ("failed", error.failed))
        }
        self._require_served(error.version, before, named["committed"])
        for name in named["failed"]:
            replica = self.replicas[name]
            is_new = not replica.refuses and replica.label == error.version
            if is_new:
                raise Mislabelled(f"{name}: {error.version} is said to have failed there, and serves")
            if named["committed"] and not replica.refuses and before[name] == replica.num_deaths:
                raise Mislabelled(f"{name}: {error.version} failed there and is live elsewhere, but it is not fenced")

    def _require_served(self, label: str, before: dict[str, int], names: Any) -> None:
        """An engine that died meanwhile serves its checkpoint again, by its own name."""
        for name in names:
            replica = self.replicas[name]
            if replica.num_deaths != before[name]:
                continue
            if replica.refuses or replica.label != label:
                raise Mislabelled(f"{name}: {label} is said to be live, it is {replica.state} with {replica.label}")

    def _require_healing(self) -> None:
        """Push all tensors. Every replica must generate again, whatever happened before."""
        self._leave("a")
        content, label = self.world.contents[1], "healed"
        for is_last in (False, True):  # the first may meet what a sequence has left
            trainer = self._trainer("a", keep_previous=True)
            if self._push(trainer, content, dict(content.tensors), label, "keep", None):
                break
            if is_last:
                raise Mislabelled(f"no push succeeds any more: {self.log[-1]}")
            for replica in self.replicas.values():  # a trainer whose abort was lost is released when its lease ends
                replica.run(replica.released(RELEASE_TIMEOUT_S))
        for name, replica in self.replicas.items():
            if not replica.engine.llm.scheduler.can_generate:
                raise Mislabelled(f"{name}: stands still after a push, {replica.state}")
        self._check("the push that heals")

    # ---- faults ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _faults(self, trainer: Trainer, fault: dict[str, Any] | None) -> Iterator[None]:
        if fault is not None and "replica" in fault:
            replica = self.replicas[fault["replica"]]
            self._arm(trainer, replica, fault)
        try:
            yield
        finally:
            self._settle(is_late=fault is not None and "late" in fault.get("hows", ()))
            trainer.wire.faults.clear()
            for replica in self.replicas.values():
                replica.engine.faults.clear()

    def _arm(self, trainer: Trainer, replica: Replica, fault: dict[str, Any]) -> None:
        match fault["kind"]:
            case "loader":
                replica.engine.faults.append(EngineFault(fault.get("call", "load"), fault["how"], fault["rank"]))
            case "engine":
                replica.engine.faults.append(EngineFault(fault["call"], fault["how"]))
            case "wire":
                for call, how in zip(fault["calls"], fault["hows"], strict=True):
                    trainer.wire.faults.append(WireFault(replica.name, call, how))
            case "interfere":
                action = fault["action"]
                interfere: Callable[[], None] = lambda: self._interfere(replica, action)  # noqa: E731
                trainer.wire.faults.append(WireFault(replica.name, fault["call"], "interfere", interfere))
            case "trainer" if fault["call"] != "transfer":
                trainer.wire.faults.append(WireFault(replica.name, fault["call"], "trainer_dies"))

    def _interfere(self, replica: Replica, action: str) -> None:
        """Have another client do this to a replica just before a call of a push."""
        client = self._client("a", replica.name)
        actions: dict[str, Callable[[], Any]] = {
            "resume": lambda: self.operate(replica, "resume_generation"),
            "pause": lambda: self.operate(replica, "pause_generation", mode="keep"),
            "fence": lambda: client.fence("an interference"),
            "kill": lambda: self._kill(replica),
            "evict": lambda: self.operate(replica, "abort_weight_update", force=True),
            "reset": lambda: self.operate(replica, "reset_weights"),
            "sleep": lambda: self.operate(replica, "sleep", level=1),
            "rollback": lambda: client.rollback(),
            "relabel": lambda: self._relabel(replica),
            "reload": lambda: client.reload(self._name_reload(is_named=True)),
        }
        with suppress(SyncError):
            actions[action]()

    def _bury(self, trainer: Trainer) -> None:
        """The trainer's process is gone: every replica must notice by itself."""
        self._trainers = {name: each for name, each in self._trainers.items() if each is not trainer}
        for name, replica in self.replicas.items():
            if not replica.run(replica.released(RELEASE_TIMEOUT_S)):
                raise Mislabelled(f"{name}: its trainer is dead, and still holds the lease")
            self.world.coverage.enter(trainer.wire.states.get(name, "serving"), "trainer gone", replica.state)

    def _kill(self, replica: Replica) -> None:
        replica.loop.call_soon_threadsafe(replica.engine.kill)
        time.sleep(0.001)

    def _relabel(self, replica: Replica) -> None:
        label = f"n{next(self._names)}"
        if replica.engine.is_running:
            for old in {replica.label, replica.weights.updates.versions.serving.label}:
                self.labels.attempt(label, *self.labels.candidates(old))
        self._try(lambda: self.operate(replica, "update_weight_version", new_version=label))

    def _name_reload(self, is_named: bool) -> str | None:
        if not is_named:
            return None
        name = f"r{next(self._names)}"
        self.labels.attempt(name, self.world.disk.content)
        return name

    # ---- who calls ------------------------------------------------------------------------------------------------

    def operate(self, replica: Replica, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call as an operator without a lease."""
        return InProcessControl(replica, self._operator).call(operation, arguments)

    def _client(self, trainer: str, replica: str) -> InProcessControl:
        """Call with the trainer's lease, but not over its wire."""
        client = InProcessControl(self.replicas[replica], self._trainers[trainer].wire)
        client.holder = self._trainers[trainer].sync.holder
        return client

    def _trainer(self, name: str, *, keep_previous: bool | None = None, is_mortal: bool = False) -> Trainer:
        found = self._trainers.get(name)
        wanted = found.keep_previous if found is not None and keep_previous is None else bool(keep_previous)
        if found is not None and (found.keep_previous, found.is_mortal) == (wanted, is_mortal):
            return found
        self._leave(name)
        wire = Wire()
        wire.replicas = list(self.replicas.values())
        wire.labels = self.labels

        def connect(target: Target, timeout: float = 0.0) -> InProcessControl:
            return InProcessControl(self.replicas[target.host], wire)

        with patch.object(weight_sync, "connect", connect):
            sync = WeightSync(
                [f"grpc://{replica}:1" for replica in REPLICAS],
                backend="gloo",
                control_key="the one that connect puts into the calls",
                timeout=PUSH_TIMEOUT_S,
                lease=SHORT_LEASE_S if is_mortal else LEASE_S,
                keep_previous=wanted,
            )
        self._trainers[name] = Trainer(sync, wire, wanted, is_mortal)
        return self._trainers[name]

    def _leave(self, name: str) -> None:
        if (trainer := self._trainers.pop(name, None)) is not None:
            trainer.sync.close()

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except SyncError as error:
            self._note_error(error)

    def _note_error(self, error: Exception) -> None:
        self.world.coverage.errors[type(error).__name__] += 1
        self.log.append(f"    {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    # ---- what there is --------------------------------------------------------------------------------------------

    def _choose(self, content: int | str) -> Content:
        if content != "same":
            return self.world.contents[int(content)]
        served = [held for replica in self.replicas.values() if (held := replica.serves()) is not None]
        return served[0] if served else self.world.contents[1]

    def _old_label(self, to: int | str | None) -> str | None:
        if to is None or to == "unknown":
            return None if to is None else "never-pushed"
        names = self.labels.names()
        return names[-1 - int(to) % len(names)]

    def _deaths(self) -> dict[str, int]:
        return {name: replica.num_deaths for name, replica in self.replicas.items()}

    def _settle(self, *, is_late: bool = False) -> None:
        if is_late:
            time.sleep(LATE_S * 1.2)
        for replica in self.replicas.values():
            replica.settle()

    def _check(self, after: str) -> None:
        problems = [problem for replica in self.replicas.values() for problem in replica.problems()]
        if problems:
            raise Mislabelled(f"after {after}: " + "; ".join(problems))
