"""The trainer's API: push weights to running replicas."""

import os
import secrets
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sync.closing import Closing
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.fleet import Fleet
from sync.control.target import Target
from sync.deadline import Deadline
from sync.errors import (
    VerifyError,
)
from sync.weights.open_source import open_source
from sync.weights.weight_source import WeightSource
from tritonlive.wire.backends import Backend
from tritonlive.wire.environment import CONTROL_KEY_VARIABLE
from tritonlive.wire.operations.engine import InFlightMode
from tritonlive.wire.states import REFUSING

from .caller_stream import CallerStream
from .collective_push import collective_push, collective_reason
from .preflight import SERVER_BACKENDS, TrainerInfo, require_all
from .pusher import Pusher, PushOptions
from .report import PushReport
from .rollback import ask_statuses, reload_checkpoint, roll_back
from .trainer_ranks import TrainerRanks

if TYPE_CHECKING:  # modules that need torch are imported where they are used: `check` does not need torch
    import torch

    from sync.adapters.adapters import AdapterReport
    from sync.transport.progress import Progress

    from .logprob_check import CanaryReport, Prompts

ALL_RANKS = "the push is collective (collective=True)"
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_LEASE_S = 30.0


class WeightSync(Closing):
    """Pushes weights to one or more replicas.

    targets: `http://host:9000` (a front end), `grpc://host:8001` (a Triton server), or several of them. An address may
        contain the control key (`http://user:key@host`); otherwise `control_key` or $TRITONLIVE_CONTROL_KEY is used.
    backend: "nccl" (GPUs), "ipc" (trainer and replica on the same GPU) or "gloo" (host memory, any device). The
        replicas must have been started with the same backend.
    timeout: seconds that a whole push may take; no call waits longer.
    master_address, master_port: where this process listens for the replicas' workers (nccl, gloo): an address of this
        machine that the workers reach. It listens only there. Port 0 picks a free port.
    lease: seconds without a renewal after which the replicas release this trainer. A thread renews the lease while the
        trainer is connected; meanwhile the replicas refuse other trainers.
    keep_previous: whether the workers keep the previous version in host memory, for `rollback` (gloo).
    shared_memory: whether the bytes travel through shared memory when all workers are on this machine (gloo). Without
        it, or with workers elsewhere, they are broadcast.

    The first push forms a group with the workers, and the next pushes reuse it. After any failure, Ctrl-C included, the
    update is aborted at every replica and the group is dissolved; the next push forms a new one. Not thread-safe.
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
        for client in self._clients:
            client.holder = self.holder
        self._ranks: TrainerRanks | None = None
        self._distrust: str | None = None  # the failure that a gating `verify` found: no push until one succeeds
        self._pusher = self._pusher_to(self._clients)

    def push(
        self,
        source: Any,
        version: str | int | None = None,
        *,
        progress: "Progress | None" = None,
        in_flight: InFlightMode = "keep",
        partial: bool = False,
        collective: bool | None = None,
    ) -> PushReport:
        """Make the weights live at every replica, and return a report.

        source: an `nn.Module`, a state dict, an iterable of `(name, tensor)`, or a checkpoint directory; names, shapes
            and dtypes as in the served checkpoint. A floating-point dtype other than the served one is cast here.
        version: the version that responses report from now on; by default "v<n+1>" after the highest "v<n>" that a
            replica has served since its server started.
        progress: called with the bytes sent so far and the bytes in all.
        in_flight: running requests continue with the new weights ("keep"), the commit waits for them ("wait"), or they
            end with finish reason "abort" ("abort").
        partial: push only some of the tensors; all others keep the values of the previous push (gloo).
        collective: whether every rank of the trainer takes part. All ranks gather the tensors that rank 0 sends, and
            return its report or raise its error. The default is True when the weights are sharded (DTensor), or come
            from a source with `is_collective`; otherwise the caller pushes alone.

        Raises SourceError when a rank of the trainer is missing, CheckError (nothing was sent), ControlError,
        TransferError, or DeadlineError: nothing changed (gloo). Raises CommitError, which names the replicas that
        committed and those that did not; the latter are fenced. Raises UnknownOutcomeError when a replica does not
        report whether it committed, and VerifyError after a `verify(gate=True)` that failed.
        """
        if partial and self.backend != "gloo":
            raise ValueError(f"partial: needs backend 'gloo', which stages; backend is {self.backend!r}")
        if self._distrust is not None:
            raise VerifyError(f"no push before verify() succeeds: {self._distrust}")
        weights = open_source(source)
        why = collective_reason(source) if collective is None else ALL_RANKS if collective else None
        caller = CallerStream.capture()
        ranks = self._ranks = self._ranks or TrainerRanks.current()
        options = PushOptions(_text(version), progress, in_flight, partial)

        def push(led: WeightSource) -> PushReport:
            return self._pusher.push(led, options, caller, self._deadline())

        return collective_push(ranks, weights, push, self.timeout, why)

    def catch_up(self, source: Any, version: str | int) -> PushReport | None:
        """Push to the replicas that do not serve `version`, or refuse to serve; the others are not touched.

        Use it for a replica that was fenced, or that restarted and serves its checkpoint. Returns None when all
        replicas serve `version`.
        Raises as `push`.
        """
        statuses = ask_statuses(self._fleet, self._deadline())
        behind = [
            client
            for client, status in zip(self._clients, statuses, strict=True)
            if status["weight_version"] != str(version) or status["state"] in REFUSING
        ]
        if not behind:
            return None
        self._pusher.leave()
        self._pusher = self._pusher_to(behind)
        try:
            return self.push(source, version)
        finally:
            self._pusher.leave()
            self._pusher = self._pusher_to(self._clients)

    def rollback(self, to: str | int | None = None, *, in_flight: InFlightMode = "keep") -> str:
        """Serve an earlier version again, at every replica, and return it.

        to: the version; by default the newest that all replicas hold and that does not serve at all of them. After a
            CommitError that is the version before the push.

        Raises ConflictError, with nothing changed, when a rank of a replica does not hold it (after a restart of
        the engine, or with keep_previous=False); CommitError when a replica fails to load it.
        """
        return roll_back(self._fleet, self.holder, _text(to), in_flight, self._deadline())

    def reload(self, version: str | int | None = None) -> str:
        """Serve the checkpoint on the replicas' disks again, and return its version's name.

        version: required when the files have changed since the engines started.

        Raises ConflictError when it is required and missing; CommitError when a replica fails to load it.
        """
        return reload_checkpoint(self._fleet, self.holder, _text(version), self._deadline())

    def verify(
        self, model: "torch.nn.Module", prompts: "Prompts", atol: float = 1e-2, *, gate: bool = False
    ) -> "CanaryReport":
        """Compare every replica's logprobs of the prompts' tokens with those of a forward pass of `model`.

        model: a transformers causal LM. prompts: lists of at least 2 token ids. atol: the largest allowed difference.
        gate: after a failure refuse pushes until a later `verify` succeeds.

        Raises VerifyError when a difference is larger, ControlError, DeadlineError.
        """
        from .logprob_check import compare_all

        report = compare_all(self._fleet, model, prompts, self._deadline())
        if report.largest > atol:
            self._distrust = str(report) if gate else None
            raise VerifyError(f"{report}; allowed are {atol:g}")
        self._distrust = None
        return report

    def check(self, source: Any) -> None:
        """Check whether a push would succeed at every replica, without sending or changing anything.

        Checks names, shapes and dtypes; whether each replica accepts a push now, over this backend and with its world
        size; its host memory; and whether this process can listen at its `master_address`.

        Raises CheckError with every problem found, ControlError when a replica does not answer.
        """
        replicas = self._pusher.ask(self._deadline(), must_be_ready=False)
        require_all(replicas, open_source(source), self._info, is_connected=self._pusher.is_connected)

    def push_adapter(
        self, name: str, source: Any, version: str | int | None = None, *, config: Any = None
    ) -> "AdapterReport":
        """Serve a LoRA adapter under `name` at every replica, or at none. The weights stay as they are.

        source: a PEFT model, whose active adapter it is; a folder that PEFT saved; or a state dict with PEFT's names
            (`base_model.model.….lora_A.weight` [rank, in], `….lora_B.weight` [out, rank]) of any float dtype.
        config: for a state dict the adapter's configuration, a dict (r, lora_alpha, target_modules, …) or a LoraConfig.
        version: reported by answers as NAME@VERSION; by default "v<n+1>" after the highest "v<n>" of that name.

        Later requests use the new version; running requests finish with the version that they began with.

        Raises SourceError, ControlError, DeadlineError (nothing changed), or CommitError, which names the replicas that
        serve it and those that do not.
        """
        from sync.adapters.adapters import open_adapter, push_adapter

        deadline = self._deadline()
        return push_adapter(self._fleet, name, open_adapter(source, config), _text(version), deadline)

    def remove_adapter(self, name: str) -> None:
        """Stop serving the adapter; running requests finish with it. Raises ControlError, DeadlineError."""
        self._fleet.each(
            "remove_adapter", lambda client, seconds: client.remove_adapter(name, seconds), self._deadline()
        )

    def close(self) -> None:
        """Leave the group and release the replicas. They keep serving their current weights."""
        self._pusher.leave()
        for client in self._clients:
            client.close()

    def __repr__(self) -> str:
        return f"WeightSync({[str(client.target) for client in self._clients]}, backend={self.backend!r})"

    @property
    def _fleet(self) -> Fleet:
        """The replicas that this trainer pushes to now."""
        return self._pusher.fleet

    @property
    def _info(self) -> TrainerInfo:
        return TrainerInfo(
            self.holder,
            self.backend,
            self.master_address,
            self.master_port,
            self.keep_previous,
            self.shared_memory,
        )

    def _pusher_to(self, clients: Sequence[ControlClient]) -> Pusher:
        return Pusher(Fleet(clients), self._info, self.lease, self.timeout)

    def _deadline(self) -> Deadline:
        return Deadline(self.timeout)


def _text(version: str | int | None) -> str | None:
    return None if version is None else str(version)
