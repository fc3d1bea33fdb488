"""Reserve a port among the stacks of a machine: servers bind theirs minutes after the port was found free."""

from .name_lock import NameHeldError, NameLock, reserved_names

PREFIX = "tritonlive/port"
WILDCARDS = frozenset({"0.0.0.0", "::"})


class PortLock(NameLock):
    """The reservation of one port on one address."""

    def __init__(self, host: str, port: int) -> None:
        """Reserve it. `host` is a numeric address. Raises NameHeldError."""
        super().__init__(f"{PREFIX}/{port}/{host}")
        for other in reserved_names(f"{PREFIX}/{port}/") - {host}:
            # A wildcard address takes the port on every address.
            if host in WILDCARDS or other in WILDCARDS:
                self.release()
                raise NameHeldError(f"{PREFIX}/{port}/{other}")
