"""The replicas behind one front end, and the choice of the replica for a request."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from openai_frontend.errors import EngineUnavailable
from tritonlive.wire.versions import FIRST_VERSION, staleness_reason


class Candidate(Protocol):
    """The properties of a replica on which the choice depends."""

    @property
    def url(self) -> str: ...
    @property
    def is_connected(self) -> bool: ...
    @property
    def unavailable_reason(self) -> str | None: ...
    @property
    def weight_version(self) -> str | None: ...
    @property
    def num_running(self) -> int: ...
    @property
    def is_slow(self) -> bool: ...
    async def ask_health(self) -> None: ...


C = TypeVar("C", bound=Candidate)


class Replicas(Generic[C]):
    """A replica may generate if it is connected and available, and serves the version that the fleet serves.

    Available: its model is not fenced, dirty or restarting. The fleet serves the version that one of its replicas
    committed last, as long as an available replica has it. Replicas with other versions are left out until they have
    caught up, so that answers come from one version at a time. If no available replica has it (all were restarted), or
    if nothing was committed since this front end started, the newest version of the available replicas serves. Versions
    have an order if they differ only in the integer at their end; the version that an engine starts with is older than
    all others. Without an order no replica may generate until a push makes the versions equal.
    """

    def __init__(self, members: Sequence[C]) -> None:
        self.members = tuple(members)
        self.committed: str | None = None  # the version that a replica committed last
        self._turns: dict[str, int] = dict.fromkeys((member.url for member in members), 0)
        self._num_turns = 0

    @property
    def weight_version(self) -> str | None:
        """The version that the fleet serves; None if no replica may generate."""
        return version_to_serve(
            self.committed, [each.weight_version for each in self.members if each.unavailable_reason is None]
        )

    def eligible(self) -> list[C]:
        return [each for each in self.members if self.why_left_out(each) is None]

    def pick(self, other_than: C | None = None) -> C | None:
        """The eligible replica with the fewest generations of this process; of several, the least recently picked."""
        found = [each for each in self.eligible() if each is not other_than]
        if not found:
            return None
        picked = min(found, key=lambda each: (each.is_slow, each.num_running, self._turns[each.url]))
        self._num_turns += 1
        self._turns[picked.url] = self._num_turns
        return picked

    async def require(self) -> None:
        """Raises EngineUnavailable, naming every replica, if none is eligible.

        First it asks the unavailable replicas about their health: a push may have healed one a moment ago.
        """
        if self.eligible():
            return
        await asyncio.gather(
            *(ask(each) for each in self.members if each.is_connected and each.unavailable_reason is not None)
        )
        if not self.eligible():
            raise self.unavailable()

    def why_left_out(self, member: C) -> str | None:
        """None if the replica may generate."""
        if (unavailable_reason := member.unavailable_reason) is not None:
            return unavailable_reason
        version = self.weight_version
        if version is None:
            return f"serves {member.weight_version!r}, and others serve weights that are neither older nor newer"
        return None if member.weight_version == version else f"serves {member.weight_version!r}, not {version!r}"

    def unavailable(self) -> EngineUnavailable:
        """The error for clients while no replica may generate."""
        reasons = {each.url: self.why_left_out(each) for each in self.members}
        return EngineUnavailable("; ".join(f"{url}: {reason or 'comes back now'}" for url, reason in reasons.items()))


async def ask(member: Candidate) -> None:
    with suppress(EngineUnavailable):  # without an answer its state stays as it is
        await member.ask_health()


def version_to_serve(committed: str | None, versions: Iterable[str | None]) -> str | None:
    """The version that the fleet serves (see Replicas), given the versions of the available replicas."""
    served = {version for version in versions if version is not None}
    if committed in served:
        return committed
    newest = [version for version in served if all(is_at_least(version, other) for other in served)]
    return newest[0] if newest else None


def is_at_least(version: str, other: str) -> bool:
    return other == FIRST_VERSION or staleness_reason(version, other) is None
