"""Several replicas as one: each control call goes to all of them at once."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from .control import ControlClient
from .deadline import Deadline, spawn, wait
from .errors import CommitError, ConflictError, ControlError, SyncError

T = TypeVar("T")
# For the calls that clean up after a failure, when the push's own deadline may have passed.
CLEAN_UP_TIMEOUT_S = 10.0


class Fleet:
    """The replicas of one push, with vLLM's `VLLMWeightSyncClient` methods; every call ends by `deadline`."""

    def __init__(self, clients: Sequence[ControlClient], deadline: Deadline) -> None:
        self.clients = list(clients)
        self.deadline = deadline
        self.world_sizes: list[int] = []
        self.version: str | None = None
        self.in_flight = "keep"
        self.lease: dict[str, Any] = {}  # holder, lease_s and timeout_s, sent along when the workers are called in
        self._joined: set[ControlClient] = set()  # replicas that this trainer's failure concerns
        self.commits: dict[str, dict[str, Any]] = {}
        self.commit_seconds = 0.0

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
        futures = self._start(operation, call, clients)
        results: list[T] = []
        errors: list[SyncError] = []
        for client, future in zip(clients, futures, strict=True):
            try:
                results.append(wait(future, self.deadline, f"{client.target}: {operation}"))
            except SyncError as error:
                errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
        return results

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Call every replica's workers into the group, one replica's ranks after another's."""
        offset = init_info.get("rank_offset", 1)
        offsets = {}
        for client, size in zip(self.clients, self.world_sizes, strict=True):
            offsets[client] = offset
            offset += size

        def init(client: ControlClient, seconds: float) -> None:
            ranked = self.lease | init_info
            if "rank_offset" in init_info:
                ranked["rank_offset"] = offsets[client]
            self._joined.add(client)
            try:
                client.init_weight_transfer_engine(ranked, seconds)
            except ControlError:
                self._joined.discard(client)  # not ours: its running update may be another trainer's
                raise

        self.each("init_weight_transfer_engine", init)

    def start_weight_update(self) -> None:
        self.each("start_weight_update", lambda client, seconds: client.start_weight_update(seconds))

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.each("update_weights", lambda client, seconds: client.update_weights(update_info, seconds))

    def finish_weight_update(self, weight_version: str | None = None, unchanged: frozenset[int] = frozenset()) -> None:
        """Commit at every replica; `unchanged` are the ranks whose model holds the very same tensors already.

        With several replicas all are asked first whether they can: a ControlError then means that none has committed.
        Raises CommitError when one fails: the others have committed, and it is fenced, if it can be reached.
        """
        version = weight_version or self.version
        is_unchanged = dict(zip(self.clients, self._replicas_within(unchanged), strict=True))

        def finish(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.finish_weight_update(
                version, seconds, in_flight=self.in_flight, unchanged=is_unchanged[client]
            )

        began = time.perf_counter()
        if len(self.clients) > 1:
            self.each("status", self._check_can_commit)
        futures = self._start("finish_weight_update", finish, self.clients)
        self.commits = {}
        failed: dict[ControlClient, BaseException] = {}
        for client, future in zip(self.clients, futures, strict=True):
            try:
                self.commits[str(client.target)] = wait(future, self.deadline, f"{client.target}: finish_weight_update")
            except SyncError as error:
                failed[client] = error
        self.commit_seconds = time.perf_counter() - began
        if failed:
            error = CommitError(str(version), self.commits, {str(client.target): failed[client] for client in failed})
            if self.commits:
                self._fence(list(failed), str(error), error)
            raise error

    @staticmethod
    def _check_can_commit(client: ControlClient, seconds: float) -> None:
        status = client.status(seconds)  # answered by the engine itself
        if status["state"] != "updating":
            reason = f"cannot commit: the replica is {status['state']}: {status.get('reason')}"
            raise ConflictError(str(client.target), "finish_weight_update", reason)

    def _replicas_within(self, ranks: frozenset[int]) -> list[bool]:
        """For each replica, whether all its ranks (they count from 1, replica after replica) are among these."""
        first, within = 1, []
        for size in self.world_sizes:
            within.append(ranks.issuperset(range(first, first + size)))
            first += size
        return within

    def _fence(self, clients: Sequence[ControlClient], reason: str, error: BaseException) -> None:
        """Replicas that kept other weights than the rest must not answer as if they had them."""
        self.deadline = Deadline(CLEAN_UP_TIMEOUT_S)
        for client in clients:
            try:
                client.fence(reason, CLEAN_UP_TIMEOUT_S)
                error.add_note(f"{client.target} is fenced: it refuses to generate until a push commits there")
            except SyncError as problem:
                error.add_note(f"{client.target} could not be fenced: {problem}")

    def give_up(self, reason: str) -> list[str]:
        """Abort the update everywhere, if one is running, and let the trainer go. Returns what did not work."""

        def abort(client: ControlClient, seconds: float) -> None:
            client.abort_weight_update(reason, seconds)

        return self._clean_up("abort_weight_update", abort) + self.leave()

    def leave(self) -> list[str]:
        """Let the trainer go at every replica it had joined. Returns what did not work."""

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
        seconds = self.deadline.remaining(operation)
        return [
            spawn(lambda client=client: call(client, seconds), name=f"{operation}@{client.target}")
            for client in clients
        ]
