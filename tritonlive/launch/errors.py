"""Errors of starting and running the local stack."""


class LaunchError(Exception):
    """Base: the stack cannot be started or has stopped. The message says why and what to change."""


class PortTakenError(LaunchError):
    """A port the stack needs is in use; `pid` is that of the launcher that has reserved it, if one has."""

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class ProcessDiedError(LaunchError):
    """tritonserver or the front end ended by itself; the message carries the cause, or its last log lines."""


class ReadyTimeoutError(LaunchError):
    """The stack did not generate a first token within the time given."""


class StackCancelled(LaunchError):
    """A stop was requested while the stack was still starting."""
