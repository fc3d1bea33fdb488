"""Several replicas as one: each control call goes to all of them at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from sync.deadline import Deadline, spawn, wait
from sync.errors import SyncError

from .client import ControlClient

T = TypeVar("T")
ReplicaCall = Callable[[ControlClient, float], T]
"""A call to one replica, which may take that many seconds."""
OnFailure = Callable[[BaseException], None]
"""Called with the error of one replica's call as soon as it fails, in that call's thread."""
# For calls that clean up after a failure: the deadline of the work itself may have passed.
CLEAN_UP_TIMEOUT_S = 10.0


class Fleet:
    """The control clients of some replicas, in order. It has no state of its own."""

    def __init__(self, clients: Sequence[ControlClient]) -> None:
        self.clients = tuple(clients)

    @property
    def targets(self) -> tuple[str, ...]:
        """The replicas' addresses, in order."""
        return tuple(str(client.target) for client in self.clients)

    def each(
        self,
        operation: str,
        call: ReplicaCall[T],
        deadline: Deadline,
        *,
        clients: Sequence[ControlClient] | None = None,
        on_failure: OnFailure | None = None,
    ) -> list[T]:
        """Run `call` for all replicas, or for `clients`, at once. Returns the results in order.

        Raises the first failure in that order, when all calls have ended; the other failures are its notes.
        """
        chosen = self.clients if clients is None else clients
        results: list[T] = []
        errors: list[SyncError] = []
        for result in self.attempt(operation, call, deadline, clients=chosen, on_failure=on_failure).values():
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
        self,
        operation: str,
        call: ReplicaCall[T],
        deadline: Deadline,
        *,
        clients: Sequence[ControlClient] | None = None,
        on_failure: OnFailure | None = None,
    ) -> "dict[ControlClient, T | SyncError]":
        """Like `each`, but returns the result or the error of every call. Raises DeadlineError when no time is left."""
        chosen = self.clients if clients is None else clients
        futures = _start(operation, call, deadline, chosen, on_failure)
        results: dict[ControlClient, T | SyncError] = {}
        for client, future in zip(chosen, futures, strict=True):
            try:
                results[client] = wait(future, deadline, f"{client.target}: {operation}")
            except SyncError as error:
                results[client] = error
        return results


def _start(
    operation: str,
    call: ReplicaCall[T],
    deadline: Deadline,
    clients: Sequence[ControlClient],
    on_failure: OnFailure | None,
) -> "list[Future[T]]":
    seconds = deadline.remaining(operation)

    def run(client: ControlClient) -> T:
        try:
            return call(client, seconds)
        except BaseException as error:
            if on_failure is not None:
                on_failure(error)
            raise

    return [spawn(lambda client=client: run(client), f"{operation}@{client.target}") for client in clients]
