"""The states of a replica's weights and of a pushed adapter, as every process names them."""

from enum import StrEnum


class State(StrEnum):
    SERVING = "serving"
    UPDATING = "updating"
    """An update runs; the replica goes on serving the weights before it."""
    DIRTY = "dirty"
    """The model's weights are unknown. It refuses to generate until a full push, a reload or a rollback commits."""
    FENCED = "fenced"
    """The model holds other weights than the rest of its fleet: it refuses to generate until an update commits."""
    PAUSED = "paused"
    """Serving, but a client has paused generation."""
    RESTARTING = "restarting"
    """The engine died and is being started again."""
    UNAVAILABLE = "unavailable"
    """A front end's word for a replica that does not answer."""


REFUSING = frozenset({State.DIRTY, State.FENCED})
"""States in which a replica refuses to generate until an update commits."""

WELL = frozenset({State.SERVING, State.PAUSED})
"""States in which a replica serves the version that it reports."""


class AdapterState(StrEnum):
    SERVING = "serving"
    STAGED = "staged"
    """Loaded, but requests do not see it yet."""
    REPLACED = "replaced"
    """A newer version serves; running requests end with this one."""
