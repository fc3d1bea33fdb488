"""The trainer's API: push weights to running replicas."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sync.closing import Closing
from sync.control.client import ControlClient, connect
from sync.control.target import Target
from sync.deadline import Deadline, spawn, wait
from sync.errors import (
    ChangedError,
    ControlError,
    DeadlineError,
    RejectedError,
    SyncError,
    TransferError,
    UnknownOutcomeError,
    VerifyError,
)
from sync.weights.check import FittedSource, ServedModel
from sync.weights.open_source import open_source
from sync.weights.weight_source import WeightSource
from tritonlive.wire.versions import next_version

from .caller_stream import CallerStream, StreamOrderedSource
from .collective_push import collective_push, collective_reason
from .fleet import Fleet, Push
from .heartbeat import Heartbeat
from .outcome_resolution import RESOLVE_TIMEOUT_S
from .preflight import SERVER_BACKENDS, Replica, Trainer, require_alike, require_all, require_ready
from .report import PushReport
from .trainer_ranks import TrainerRanks

if TYPE_CHECKING:  # what needs torch is imported where it is used: `check` does not
    import torch

    from sync.adapters.adapters import AdapterReport
    from sync.transport.trainer.gloo_trainer import Progress

    from .logprob_check import CanaryReport, Prompts

T = TypeVar("T")
Backend = Literal["nccl", "ipc", "gloo"]
CONTROL_KEY_VARIABLE = "TRITONLIVE_CONTROL_KEY"
InFlight = Literal["keep", "wait", "abort"]
ALL_RANKS = "the push is collective (collective=True)"
# To ask a replica whether it has committed, and to fence it.
SETTLE_TIMEOUT_S = 2 * RESOLVE_TIMEOUT_S
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_LEASE_S = 30.0


class WeightSync(Closing):
    """Pushes weights to one or more replicas.

    targets: `http://host:9000` (a front end), `grpc://host:8001` (a Triton server), or several of them. A key may
        stand in the address (`http://user:key@host`), else `control_key` or $TRITONLIVE_CONTROL_KEY is used.
    backend: "nccl" (GPUs), "ipc" (trainer and replica on the same GPU) or "gloo" (CPU memory, any device). The
        replicas must have been started with the same one.
    timeout: seconds a whole push may take; nothing waits longer.
    master_address, master_port: where this process listens for the replicas' workers (nccl, gloo): an address of this
        machine that they reach. It listens there only. Port 0 picks a free one.
    lease: seconds after which the replicas let go of this trainer if they hear nothing of it. While it is connected a
        thread renews it; other trainers are refused meanwhile.
    keep_previous: whether the workers keep the version before in host memory, for `rollback` (gloo).
    shared_memory: whether the bytes go through memory when all workers are on this machine (gloo); else, and without
        it, they are broadcast.

    The group formed by the first push is kept for the next ones. After any failure, Ctrl-C included, the update is
    aborted at every replica and the group torn down; the next push forms a new one. Not safe for several threads.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        backend: Backend = "nccl",
        control_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        master_address: str = "127.0.0.1",
        master_port: int = 0,
        lease: float = DEFAULT_LEASE_S,
        keep_previous: bool = True,
        shared_memory: bool = True,
    ) -> None:
        if backend not in SERVER_BACKENDS:
            raise ValueError(f"backend: {backend!r} is not one of {', '.join(SERVER_BACKENDS)}")
        if timeout <= 0:
            raise ValueError(f"timeout: must be more than 0 seconds, got {timeout}")
        addresses = [targets] if isinstance(targets, str) else list(targets)
        if not addresses:
            raise ValueError("targets: at least one is needed")
        key = control_key if control_key is not None else os.environ.get(CONTROL_KEY_VARIABLE)
        self.backend = backend
        self.timeout = timeout
        self.master_address = master_address
        self.master_port = master_port
        self._clients = [connect(Target.parse(address, key)) for address in addresses]
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.lease = lease
        self.keep_previous = keep_previous
        self.shared_memory = shared_memory
        self._myself = Trainer(self.holder, backend, master_address, master_port, keep_previous, shared_memory)
        self._ranks: TrainerRanks | None = None
        self._caller = CallerStream()
        self._distrust: str | None = None  # what the canary found: no push before it is found well
        self._heartbeat: Heartbeat | None = None
        # Asked for once per group: a replica restarted with another model leaves it.
        self._served: list[ServedModel] = []
        self._use(self._clients)
        self._trainer: Any = None  # GlooTrainer, or one of vLLM's TrainerWeightTransferEngine: the same shape

    def push(
        self,
        source: Any,
        version: str | int | None = None,
        *,
        progress: "Progress | None" = None,
        in_flight: InFlight = "keep",
        partial: bool = False,
        collective: bool | None = None,
    ) -> PushReport:
        """Make the weights live at every replica and return what it took.

        source: an `nn.Module`, a state dict, an iterable of `(name, tensor)`, or a checkpoint directory; names, shapes
            and dtypes as in the served checkpoint. A floating-point dtype other than the served one is cast here.
        version: what responses report from now on; by default "v<n+1>" after the highest "v<n>" that a replica has
            served since its server started.
        progress: called with bytes sent and bytes in all (gloo).
        in_flight: what becomes of running requests: they go on with the new weights ("keep"), the commit waits for
            them ("wait"), or they end with finish reason "abort".
        partial: push only some of the tensors; the others stay as the push before left them (gloo).

        collective: whether every rank of the trainer takes part: they gather what rank 0 sends, and all return its
            report or raise its error. By default they must when the weights are sharded (DTensor), or come from a
            source that says `is_collective`; else the caller pushes alone.

        Raises SourceError when a rank of the trainer does not come, CheckError (nothing was sent), ControlError,
        TransferError, or DeadlineError: nothing changed (gloo). Raises CommitError, which names the replicas that took
        the weights and those that did not; these are fenced. Raises UnknownOutcomeError when a replica cannot be asked
        whether it did, VerifyError when a `verify(gate=True)` before found the replicas wrong.
        """
        if partial and self.backend != "gloo":
            raise ValueError(f"partial: needs backend 'gloo', which stages; backend is {self.backend!r}")
        if self._distrust is not None:
            raise VerifyError(f"no push before verify() succeeds: {self._distrust}")
        weights = open_source(source)
        why = collective_reason(source) if collective is None else ALL_RANKS if collective else None
        self._caller = CallerStream.capture()
        ranks = self._ranks = self._ranks or TrainerRanks.current()

        def push(led: WeightSource) -> PushReport:
            return self._push_or_reconnect(led, version, in_flight, progress, partial=partial)

        return collective_push(ranks, weights, push, self.timeout, why)

    def _push_or_reconnect(
        self,
        weights: WeightSource,
        version: str | int | None,
        in_flight: InFlight,
        progress: "Progress | None",
        *,
        partial: bool,
    ) -> PushReport:
        deadline = Deadline(self.timeout)  # counted from when all ranks have come
        was_connected = self._trainer is not None
        try:
            return self._push(weights, version, in_flight, progress, deadline, partial=partial)
        except (TransferError, ControlError) as error:
            if not was_connected or self._trainer is not None or isinstance(error, RejectedError | ChangedError):
                raise
        # The last push's group is gone: a replica was restarted, or another trainer came. Once more with a new one.
        return self._push(weights, version, in_flight, progress, deadline, partial=partial)

    def _push(
        self,
        weights: WeightSource,
        version: str | int | None,
        in_flight: InFlight,
        progress: "Progress | None",
        deadline: Deadline,
        *,
        partial: bool,
    ) -> PushReport:
        began = time.perf_counter()
        fleet = self._fleet
        fleet.deadline = deadline
        replicas = self._ask(must_be_ready=True)
        statuses = [replica.status for replica in replicas]
        served = (status.get(field) for status in statuses for field in ("weight_version", "newest_numbered"))
        label = str(version) if version is not None else next_version(served)
        push = fleet.push = Push(label, in_flight, is_partial=partial)
        asked = time.perf_counter()
        fitted = require_alike(replicas, weights, partial=partial)
        if self.backend != "gloo":
            fitted.require_order(self.backend)
        checked = time.perf_counter()
        try:
            if self._trainer is None:
                connecting = self._spawn(lambda: self._connect(fitted))
                self._trainer = wait(connecting, fleet.deadline, f"push of {push.version}")
            connected = time.perf_counter()
            self._trainer.source, self._trainer.progress = StreamOrderedSource(fitted, self._caller), progress
            # A LeadSource has the failure of another rank of this trainer.
            self._send(push, getattr(weights, "failure", None))
            done = time.perf_counter()
        except BaseException as error:
            self._give_up(error)
            raise
        answers = list(push.commits.values())
        return PushReport(
            version=push.version,
            num_bytes=fitted.num_bytes,
            num_tensors=len(fitted.metadata()),
            seconds=done - began,
            connect_s=(asked - began) + (connected - checked),
            check_s=checked - asked,
            transfer_s=done - connected - push.commit_s,
            commit_s=push.commit_s,
            paused_s=max(answer.get("paused_s", 0.0) for answer in answers),
            load_s=max(answer.get("load_s", 0.0) for answer in answers),
            targets=tuple(push.commits),
            unchanged=tuple(target for target, answer in push.commits.items() if not answer.get("is_changed", True)),
            transport=getattr(self._trainer, "transport", self.backend),
            kept_tensors=len(fitted.missing),
        )

    def catch_up(self, source: Any, version: str | int) -> PushReport | None:
        """Bring the replicas that do not serve `version`, or refuse to serve at all, up to it; the rest is left alone.

        For a replica that was fenced, or restarted and serves its checkpoint. None when all serve `version`.
        Raises as `push`.
        """
        self._fleet.deadline = Deadline(self.timeout)
        statuses = self._fleet.each("status", lambda client, seconds: client.status(seconds))
        behind = [
            client
            for client, status in zip(self._clients, statuses, strict=True)
            if status["weight_version"] != str(version) or status["state"] in ("dirty", "fenced")
        ]
        if not behind:
            return None
        everyone = self._clients
        self._leave()
        self._use(behind)
        try:
            return self.push(source, version)
        finally:
            self._leave()
            self._use(everyone)

    def rollback(self, to: str | int | None = None, *, in_flight: InFlight = "keep") -> str:
        """Serve an earlier version again, at every replica, and return it.

        to: the version; by default the newest that all replicas have at hand and that does not serve at all of them.
            After a CommitError that is the one before the push.

        Raises ConflictError, with nothing changed, when a rank of a replica does not have it (after a restart of the
        engine, or with keep_previous=False); CommitError when a replica fails to load it.
        """
        self._fleet.deadline = Deadline(self.timeout)
        return self._fleet.rollback(None if to is None else str(to), in_flight)

    def reload(self, version: str | int | None = None) -> str:
        """Serve the checkpoint on the replicas' disks again, and return its version's name.

        version: needed when the files have changed since the engines started.

        Raises ConflictError when it is needed and not given; CommitError when a replica fails to load it.
        """
        self._fleet.deadline = Deadline(self.timeout)
        return self._fleet.reload(None if version is None else str(version))

    def verify(
        self, model: "torch.nn.Module", prompts: "Prompts", atol: float = 1e-2, *, gate: bool = False
    ) -> "CanaryReport":
        """Compare the logprobs of the prompts' tokens, served and by a forward pass of `model`, at every replica.

        model: a transformers causal LM. prompts: lists of at least 2 token ids. atol: the largest difference allowed.
        gate: after a failure refuse to push until a later `verify` succeeds.

        Raises VerifyError when a difference is larger, ControlError, DeadlineError.
        """
        from .logprob_check import compare, own_logprobs, worst

        self._fleet.deadline = Deadline(self.timeout)
        own = own_logprobs(model, prompts)
        report = worst(self._fleet.each("score", lambda client, seconds: compare(client, prompts, own, seconds)))
        if report.largest > atol:
            self._distrust = str(report) if gate else None
            raise VerifyError(f"{report}; allowed are {atol:g}")
        self._distrust = None
        return report

    def check(self, source: Any) -> None:
        """Find out whether a push would work at every replica, without sending or changing anything.

        Compares names, shapes and dtypes; whether each replica could take a push now, over this backend and with its
        world size; its host memory; and whether this process can listen where the workers would join it.

        Raises CheckError with everything that stands against it, ControlError when a replica does not answer.
        """
        self._fleet.deadline = Deadline(self.timeout)
        replicas = self._ask(must_be_ready=False)
        require_all(replicas, open_source(source), self._myself, is_connected=self._trainer is not None)

    def push_adapter(
        self, name: str, source: Any, version: str | int | None = None, *, config: Any = None
    ) -> "AdapterReport":
        """Serve a LoRA adapter under `name` at every replica, or at none. The weights stay as they are.

        source: a PEFT model, whose active adapter it is; a folder that PEFT saved; or a state dict with PEFT's names
            (`base_model.model.….lora_A.weight` [rank, in], `….lora_B.weight` [out, rank]) of any float dtype.
        config: for a state dict the adapter's configuration, a dict (r, lora_alpha, target_modules, …) or a LoraConfig.
        version: what answers report, as NAME@VERSION; by default "v<n+1>" after the highest "v<n>" of that name.

        Requests that arrive after this are made by the new version; running ones end with the version they began with.

        Raises SourceError, ControlError, DeadlineError (nothing changed), or CommitError, which names the replicas that
        serve it and those that do not.
        """
        from sync.adapters.adapters import open_adapter, push_adapter

        self._fleet.deadline = Deadline(self.timeout)
        adapter = open_adapter(source, config)
        return push_adapter(self._fleet, name, adapter, None if version is None else str(version))

    def remove_adapter(self, name: str) -> None:
        """Serve the adapter no more; running requests end with it. Raises ControlError, DeadlineError."""
        self._fleet.deadline = Deadline(self.timeout)
        self._fleet.each("remove_adapter", lambda client, seconds: client.remove_adapter(name, seconds))

    def close(self) -> None:
        """Leave the group and let the replicas go. They keep serving what they serve."""
        self._leave()
        for client in self._clients:
            client.close()

    def __repr__(self) -> str:
        return f"WeightSync({[str(client.target) for client in self._clients]}, backend={self.backend!r})"

    def _use(self, clients: Sequence[ControlClient]) -> None:
        """Push to these from now on."""
        self._clients = list(clients)
        for client in self._clients:
            client.holder = self.holder
        self._served = []
        lease = {"holder": self.holder, "lease_s": self.lease, "timeout_s": self.timeout}
        self._fleet = Fleet(self._clients, Deadline(self.timeout), lease)

    def _leave(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._trainer is not None:
            self._trainer.shutdown()
            self._trainer = None
            self._fleet.leave()

    # ---- phases -------------------------------------------------------------------------------------------------

    def _ask(self, *, must_be_ready: bool) -> list[Replica]:
        """What the replicas say they are; their tensors are asked for once per group.

        Raises ConflictError or InvalidError, with `must_be_ready`, when one could not take a push now.
        """
        targets = [str(client.target) for client in self._clients]
        statuses = self._fleet.each("status", lambda client, seconds: client.status(seconds))
        replicas = [Replica(target, status) for target, status in zip(targets, statuses, strict=True)]
        if must_be_ready:
            require_ready(replicas, self._myself)
        self._fleet.world_sizes = [replica.world_size for replica in replicas]
        if any(replica.is_restarting for replica in replicas):
            return replicas
        if self._trainer is None or not self._served:
            answers = self._fleet.each("parameters", lambda client, seconds: client.parameters(seconds))
            self._served = [ServedModel.from_answer(*pair) for pair in zip(targets, answers, strict=True)]
        return [Replica(*each) for each in zip(targets, statuses, self._served, strict=True)]

    def _connect(self, fitted: FittedSource) -> Any:
        """Form the group with the replicas' workers."""
        fleet = self._fleet
        fleet.reserve()
        self._heartbeat = Heartbeat(self._clients, self.lease)  # forming the group may take longer than the lease
        if self.backend == "gloo":
            from sync.transport.trainer.gloo_trainer import GlooTrainer, GlooTrainerInitInfo

            seconds = fleet.deadline.remaining("connect")
            info = GlooTrainerInitInfo(
                self.master_address,
                self.master_port,
                fleet.world_size + 1,
                seconds,
                keep_previous=self.keep_previous,
                shared_memory=self.shared_memory,
            )
            return GlooTrainer(info, fleet, fitted)
        from .vllm_trainer import vllm_trainer

        return vllm_trainer(self.backend, self.master_address, self.master_port, fleet, fitted)

    def _spawn(self, call: Callable[[], T]) -> "Future[T]":
        """Run in a thread of its own, so that the deadline and Ctrl-C get through whatever it waits for."""
        return spawn(self._caller.bound(call), name="weight-sync")

    def _send(self, push: Push, unless: "Future[None] | None") -> None:
        """Run the trainer's `send_weights`. A commit that is under way at the deadline, or at Ctrl-C, is waited for.

        Raises UnknownOutcomeError when what became of it is not known even then.

        unless: ends the wait with its error, should it get one.
        """
        what = f"push of {push.version}"
        future = self._spawn(self._trainer.send_weights)
        try:
            wait(future, self._fleet.deadline, what, unless)
        except (DeadlineError, KeyboardInterrupt) as error:
            if not push.is_committing:
                raise
            try:
                wait(future, Deadline(SETTLE_TIMEOUT_S), what)
            except DeadlineError:
                unknown = {str(client.target): error for client in self._clients}
                raise UnknownOutcomeError(push.version, (), {}, unknown) from error
            if isinstance(error, KeyboardInterrupt):
                raise

    def _give_up(self, error: BaseException) -> None:
        trainer, self._trainer = self._trainer, None
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if trainer is not None:
            trainer.abort()
        reason = str(error) if isinstance(error, SyncError) else type(error).__name__
        for problem in self._fleet.give_up(reason):
            error.add_note(f"while giving up: {problem}")
