"""Which versions a replica has served: their labels, and the ids under which the workers hold them."""

from dataclasses import dataclass

from tritonlive.wire.outcomes import CHECKPOINT_ID
from tritonlive.wire.versions import FIRST_VERSION, newest_numbered

MAX_EARLIER = 16


@dataclass(frozen=True)
class Version:
    """A label that answers report, and the id of the push that brought the weights; several labels may share an id."""

    label: str
    update_id: str


class ServedVersions:
    """The version that serves, and those before it that the workers may still hold."""

    def __init__(self, label: str = FIRST_VERSION) -> None:
        """As an engine starts: with its checkpoint's weights."""
        self.newest_numbered: str | None = None
        """The highest "v<n>" that has ever served here: what nobody names is called the next one, and no name returns
        with other weights after a rollback or a restart of the engine."""
        self.restart(label)

    def restart(self, label: str) -> None:
        """An engine has started: with its checkpoint's weights, and without those before."""
        self.serving = Version(label, CHECKPOINT_ID)
        self.earlier: list[Version] = []  # newest last

    @property
    def previous(self) -> Version | None:
        """Where a rollback goes unless it names a version."""
        return self.earlier[-1] if self.earlier else None

    def find(self, label: str) -> Version | None:
        """The newest version of that name."""
        return next((version for version in (self.serving, *reversed(self.earlier)) if version.label == label), None)

    def commit(self, version: Version) -> None:
        """A push went live: the workers keep what served before it, and more only if the push has changed nothing."""
        if version.update_id != self.serving.update_id:
            self.earlier = [other for other in self.earlier if other.update_id == self.serving.update_id]
        self.restore(version)
        self._note(version.label)

    def restore(self, version: Version) -> None:
        """A rollback went live: the version that served can be gone back to as well."""
        earlier = [other for other in (*self.earlier, self.serving) if other != version]
        self.earlier = earlier[-MAX_EARLIER:]  # pushes that change nothing bring name after name
        self.serving = version

    def relabel(self, label: str) -> None:
        """The same weights, by another name."""
        self.serving = Version(label, self.serving.update_id)
        self._note(label)

    def _note(self, label: str) -> None:
        self.newest_numbered = newest_numbered([self.newest_numbered, label])
