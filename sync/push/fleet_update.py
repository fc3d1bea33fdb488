"""The control calls of one push, to all replicas at once."""

import time
from typing import Any

from sync.control.client import ControlClient
from sync.control.fleet import Fleet, OnFailure
from sync.errors import TransferError

from .outcome_resolution import resolve
from .push_context import PushContext


class FleetUpdate:
    """One update at every replica, and its outcome.

    It has the methods of vLLM's `VLLMWeightSyncClient` that belong to an update; a trainer engine calls them in order.
    """

    def __init__(self, fleet: Fleet, context: PushContext) -> None:
        self.context = context
        self.is_committing = False
        """Whether a replica may have received the commit: from then on only the replicas know the push's outcome."""
        self.commits: dict[str, dict[str, Any]] = {}
        """The replicas' answers to the commit, by target."""
        self.commit_s = 0.0
        self._fleet = fleet

    def start_weight_update(self) -> None:
        """Begin the update. Raises ControlError, DeadlineError."""
        context = self.context

        def start(client: ControlClient, seconds: float) -> None:
            client.start_weight_update(seconds, update_id=context.update_id, in_flight=context.in_flight)

        self._fleet.each("start_weight_update", start, context.deadline)

    def update_weights(
        self, update_info: dict[str, Any] | list[dict[str, Any]], on_failure: OnFailure | None = None
    ) -> None:
        """Announce tensors, or hand them over. Raises ControlError, DeadlineError.

        on_failure: gets the error of the first replica that fails, before the other replicas have answered.
        """
        context = self.context
        if context.is_partial and isinstance(update_info, dict):
            update_info = update_info | {"partial": True}

        def update(client: ControlClient, seconds: float) -> None:
            client.update_weights(update_info, seconds, update_id=context.update_id)

        self._fleet.each("update_weights", update, context.deadline, on_failure=on_failure)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commit at every replica, in two phases: first all replicas confirm that all of their ranks can load.

        After a ControlError or TransferError no replica has committed. Raises CommitError when a replica fails to
        commit: the others have committed, and the failed one is fenced if it can be reached. Raises UnknownOutcomeError
        when a replica does not report whether it has committed.
        """
        context = self.context
        version = weight_version or context.version
        began = time.perf_counter()
        self._prepare()

        def finish(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.finish_weight_update(version, seconds, update_id=context.update_id)

        self.is_committing = True
        results = self._fleet.attempt("finish_weight_update", finish, context.deadline)
        outcome = resolve(results, context.update_id, version)
        self.commits = {str(client.target): answer for client, answer in outcome.committed.items()}
        self.commit_s = time.perf_counter() - began
        outcome.require()

    def _prepare(self) -> None:
        """Raises TransferError when the replicas have staged different tensors."""
        context = self.context

        def prepare(client: ControlClient, seconds: float) -> dict[str, Any]:
            return client.prepare_weight_update(seconds, update_id=context.update_id)

        answers = self._fleet.each("prepare_weight_update", prepare, context.deadline)
        digests = {answer.get("digest") for answer in answers}
        if len(digests) > 1:
            pairs = zip(self._fleet.targets, answers, strict=True)
            staged = ", ".join(f"{target}: {answer.get('digest')}" for target, answer in pairs)
            raise TransferError(f"the replicas have staged different tensors: {staged}")
