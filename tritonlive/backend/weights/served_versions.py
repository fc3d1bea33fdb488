"""The versions that a replica has served: their labels, and the ids under which the workers hold them."""

import secrets
from dataclasses import dataclass

from tritonlive.wire.outcomes import CHECKPOINT_ID
from tritonlive.wire.versions import FIRST_VERSION, newest_numbered

MAX_EARLIER = 16


@dataclass(frozen=True)
class Version:
    """A label that answers report, and the id of the push that brought the weights. Labels may share an id."""

    label: str
    update_id: str


class ServedVersions:
    """The version that serves, and earlier ones that the workers may still hold."""

    def __init__(self, label: str = FIRST_VERSION) -> None:
        """The state of a new engine: it serves its checkpoint as `label`."""
        self.newest_numbered: str | None = None
        """The highest "v<n>" that has ever served here. Unnamed pushes are called the next one, so that no name returns
        with other weights after a rollback or a restart."""
        self.restart(label)

    def restart(self, label: str) -> None:
        """A new engine serves its checkpoint as `label`; earlier versions are lost."""
        self.serving = Version(label, CHECKPOINT_ID)
        self.earlier: list[Version] = []  # newest last

    @property
    def previous(self) -> Version | None:
        """Target of a rollback that names no version."""
        return self.earlier[-1] if self.earlier else None

    def find(self, label: str) -> Version | None:
        """The newest version with that label."""
        return next((version for version in (self.serving, *reversed(self.earlier)) if version.label == label), None)

    def commit(self, version: Version) -> None:
        """A push went live. The workers keep only the version before it; all of them if the push changed nothing."""
        if version.update_id != self.serving.update_id:
            self.earlier = [other for other in self.earlier if other.update_id == self.serving.update_id]
        self.restore(version)
        self._note(version.label)

    def restore(self, version: Version) -> None:
        """A rollback went live. The version that served until now stays available."""
        earlier = [other for other in (*self.earlier, self.serving) if other != version]
        self.earlier = earlier[-MAX_EARLIER:]  # pushes that change nothing add a label each
        self.serving = version

    def relabel(self, label: str) -> None:
        """Rename the version that serves."""
        self.serving = Version(label, self.serving.update_id)
        self._note(label)

    def _note(self, label: str) -> None:
        self.newest_numbered = newest_numbered([self.newest_numbered, label])


def checkpoint_version(label: str) -> Version:
    """The version of a reloaded checkpoint, with a new id: the files may differ from those of an earlier checkpoint."""
    return Version(label, f"{CHECKPOINT_ID}-{secrets.token_hex(4)}")
