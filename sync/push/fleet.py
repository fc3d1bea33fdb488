"""Several replicas as one: each control call goes to all of them at once."""

import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sync.control.client import ControlClient
from sync.deadline import Deadline, spawn, wait
from sync.errors import ConflictError, SyncError, TransferError
from tritonlive.wire.states import WELL, State
from tritonlive.wire.versions import FIRST_VERSION

from .outcome_resolution import resolve

T = TypeVar("T")
# For the calls that clean up after a failure, when the push's own deadline may have passed.
CLEAN_UP_TIMEOUT_S = 10.0


@dataclass
class Push:
    """One push: what its calls carry, and what came of its commit."""

    version: str
    in_flight: str
    is_partial: bool = False
    """Whether the tensors that are not sent stay as they are."""
    update_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """The same at every replica; what becomes of the push is asked for by it."""
    is_committing: bool = False
    """Whether a replica may have been asked to commit: from then on only asking tells what became of it."""
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The replicas' answers to the commit, by target."""
    commit_s: float = 0.0


class Fleet:
    """The replicas of one push, with vLLM's `VLLMWeightSyncClient` methods; every call ends by `deadline`."""

    def __init__(self, clients: Sequence[ControlClient], deadline: Deadline, lease: dict[str, Any]) -> None:
        """lease: `holder`, `lease_s` and `timeout_s`, sent along when the workers are called in."""
        self.clients = list(clients)
        self.deadline = deadline
        self.world_sizes: list[int] = []
        self.push = Push("", "keep")
        self.on_failure: Callable[[BaseException], None] | None = None
        """Called as soon as one replica's call fails, in its thread; `each` raises when all have ended."""
        self._lease = lease
        self._joined: set[ControlClient] = set()  # replicas that this trainer's failure concerns

    @property
    def world_size(self) -> int:
        """Workers of all replicas; the trainer not counted."""
        return sum(self.world_sizes)

    def each(
        self,
        operation: str,
        call: Callable[[ControlClient, float], T],
        clients: Sequence[ControlClient] | None = None,
    ) -> list[T]:
        """Run `call(client, seconds left)` for all replicas at once; raises the first failure when all have ended."""
        clients = self.clients if clients is None else clients
        results: list[T] = []
        errors: list[SyncError] = []
        for result in self.attempt(operation, call, clients).values():
            if isinstance(result, SyncError):
                errors.append(result)
            else:
                results.append(result)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
        return results

    def attempt(
        self, operation: str, call: Callable[[ControlClient, float], T], clients: Sequence[ControlClient]
    ) -> "dict[ControlClient, T | SyncError]":
        """As `each`, but returns what became of every call: its result or its error."""
        futures = self._start(operation, call, clients)
        results: dict[ControlClient, T | SyncError] = {}
        for client, future in zip(clients, futures, strict=True):
            try:
                results[client] = wait(future, self.deadline, f"{client.target}: {operation}")
            except SyncError as error:
                results[client] = error
        return results

    def reserve(self) -> None:
        """Take the lease of every replica: workers called into a group in which a replica is missing wait for it."""

        def reserve(client: ControlClient, seconds: float) -> None:
            client.reserve_lease(self._lease, seconds)
            self._joined.add(client)  # not before: its running update may be another trainer's

        self.each("reserve_lease", reserve)

    # ---- vLLM's VLLMWeightSyncClient ------------------------------------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Call every replica's workers into the group, one replica's ranks after another's; `reserve` comes first."""
        offset = init_info.get("rank_offset", 1)
        offsets = {}
        for client, size in zip(self.clients, self.world_sizes, strict=True):
            offsets[client] = offset
            offset += size

        def init(client: ControlClient, seconds: float) -> None:
            ranked = self._lease | init_info
            if "rank_offset" in init_info:
                ranked["rank_offset"] = offsets[client]
            client.init_weight_transfer_engine(ranked, seconds)

        self.each("init_weight_transfer_engine", init)

    def start_weight_update(self) -> None:
        def start(client: ControlClient, seconds: float) -> None:
            client.start_weight_update(seconds, update_id=self.push.update_id, in_flight=self.push.in_flight)

        self.each("start_weight_update", start)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        if self.push.is_partial and isinstance(update_info, dict):
            update_info = update_info | {"partial": True}

        def update(client: ControlClient, seconds: float) -> None:
            client.update_weights(update_info, seconds, update_id=self.push.update_id)

        self.each("update_weights", update)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commit at every replica, in two phases: all say first that all of their ranks can.

        A ControlError or TransferError means that none has committed. Raises CommitError when one fails: the others
        have committed, and it is fenced, if it can be reached; UnknownOutcomeError when one cannot be asked.
        """
        push = self.push
        version = weight_version or push.version
        began = time.perf_counter()
        self._prepare()

        def finish(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.finish_weight_update(version, seconds, update_id=push.update_id)

        push.is_committing = True
        results = self.attempt("finish_weight_update", finish, self.clients)
        outcome = resolve(results, push.update_id, version)
        push.commits = {str(client.target): answer for client, answer in outcome.committed.items()}
        push.commit_s = time.perf_counter() - began
        outcome.require()

    def _prepare(self) -> None:
        def prepare(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.prepare_weight_update(seconds, update_id=self.push.update_id)

        answers = self.each("prepare_weight_update", prepare)
        digests = {answer.get("digest") for answer in answers}
        if len(digests) > 1:
            targets = [str(client.target) for client in self.clients]
            staged = ", ".join(f"{target}: {a.get('digest')}" for target, a in zip(targets, answers, strict=True))
            raise TransferError(f"the replicas have staged different tensors: {staged}")

    # ---- going back -----------------------------------------------------------------------------------------------

    def rollback(self, to: str | None, in_flight: str) -> str:
        """Serve an earlier version again at every replica, and return it.

        to: the version; by default the newest that all replicas have at hand and that does not serve at all of them.

        Raises ConflictError, with nothing changed, when there is no such version; CommitError as a push.
        """
        statuses = self.each("status", lambda client, seconds: client.status(seconds))
        self._require_free(statuses)
        target = to if to is not None else self._common_version(statuses)
        self._require_same_tensors(statuses, target)

        update_id = secrets.token_hex(8)

        def restore(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.rollback(in_flight, seconds, to=target, update_id=update_id)

        outcome = resolve(self.attempt("rollback", restore, self.clients), update_id, target)
        outcome.require()
        return target

    def reload(self, version: str | None) -> str:
        """Serve the checkpoint on the replicas' disks again, and return its version's name.

        Raises ConflictError, with nothing changed, when the files have changed at every replica and no name is given;
        CommitError as a push.
        """

        update_id = secrets.token_hex(8)
        self._require_free(self.each("status", lambda client, seconds: client.status(seconds)))

        def load(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.reload(version, seconds, update_id=update_id)

        results = self.attempt("reload", load, self.clients)
        errors = [result for result in results.values() if isinstance(result, SyncError)]
        if len(errors) == len(results):
            raise errors[0]
        outcome = resolve(results, update_id, version or FIRST_VERSION)
        outcome.require()
        return next(iter(outcome.committed.values()))["weight_version"]

    def _common_version(self, statuses: Sequence[dict[str, Any]]) -> str:
        """The newest version that all have at hand, other than the one that all serve."""
        kept = [[entry["weight_version"] for entry in status.get("kept_versions", ())] for status in statuses]
        served = {status["weight_version"] if is_well(status) else None for status in statuses}
        common = [version for version in kept[0] if {version} != served and all(version in other for other in kept)]
        if not common:
            held = "; ".join(
                f"{client.target} has {', '.join(versions) or 'none'}"
                for client, versions in zip(self.clients, kept, strict=True)
            )
            targets = ", ".join(str(client.target) for client in self.clients)
            raise ConflictError(targets, "rollback", f"no previous version is kept at every replica: {held}")
        # What serves somewhere is newer than what serves nowhere; otherwise the lists are oldest first.
        return max(common, key=lambda version: (version in served, common.index(version)))

    def _require_free(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Raises ConflictError unless every replica would let this trainer change its weights now."""
        for client, status in zip(self.clients, statuses, strict=True):
            holder = (status.get("lease") or {}).get("holder")
            if status["state"] in (State.UPDATING, State.RESTARTING) or holder not in (None, self._lease["holder"]):
                reason = status.get("reason") or f"trainer {holder} is connected"
                raise ConflictError(str(client.target), "status", f"the replica is {status['state']}: {reason}")

    def _require_same_tensors(self, statuses: Sequence[dict[str, Any]], target: str) -> None:
        """Raises ConflictError unless every replica has the version, and means the same tensors by it."""
        digests: set[str] = set()
        for client, status in zip(self.clients, statuses, strict=True):
            entries = [e for e in status.get("kept_versions", ()) if e["weight_version"] == target]
            if not entries:
                raise ConflictError(str(client.target), "rollback", f"no previous version is kept here as {target!r}")
            digests |= {entry["digest"] for entry in entries[-1:] if entry["digest"] is not None}
        if len(digests) > 1:
            targets = ", ".join(str(client.target) for client in self.clients)
            raise ConflictError(targets, "rollback", f"the replicas hold different tensors as {target!r}")

    # ---- giving up ------------------------------------------------------------------------------------------------

    def give_up(self, reason: str) -> list[str]:
        """Abort the update everywhere, if one is running, and release the trainer. Returns what did not work."""

        def abort(client: ControlClient, seconds: float) -> None:
            client.abort_weight_update(reason, seconds, update_id=self.push.update_id)

        return self._clean_up("abort_weight_update", abort) + self.leave()

    def leave(self) -> list[str]:
        """Release the trainer at every replica that it had joined. Returns what did not work."""

        def shutdown(client: ControlClient, seconds: float) -> None:
            client.shutdown_weight_transfer_engine(seconds)

        problems = self._clean_up("shutdown_weight_transfer_engine", shutdown)
        self._joined.clear()
        return problems

    def _clean_up(self, operation: str, call: Callable[[ControlClient, float], None]) -> list[str]:
        self.deadline = Deadline(CLEAN_UP_TIMEOUT_S)
        try:
            self.each(operation, call, [client for client in self.clients if client in self._joined])
        except SyncError as error:
            return [str(error), *getattr(error, "__notes__", ())]
        return []

    def _start(
        self, operation: str, call: Callable[[ControlClient, float], T], clients: Sequence[ControlClient]
    ) -> "list[Future[T]]":
        seconds, on_failure = self.deadline.remaining(operation), self.on_failure

        def run(client: ControlClient) -> T:
            try:
                return call(client, seconds)
            except BaseException as error:
                if on_failure is not None:
                    on_failure(error)
                raise

        return [spawn(lambda client=client: run(client), f"{operation}@{client.target}") for client in clients]


def is_well(status: dict[str, Any]) -> bool:
    """Whether a replica serves what it says."""
    return status["state"] in WELL
