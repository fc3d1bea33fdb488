"""What every system of a comparison is, once it runs."""

from typing import Protocol

import psutil


class Server(Protocol):
    """A running system that speaks the OpenAI API."""

    url: str
    rollouts_url: str
    """Where a trainer asks for rollouts: `grpc://` where arrays come back, `http://` where JSON does."""

    def processes(self) -> list[psutil.Process]:
        """Every process of the system, for its processor time and memory."""
        ...

    def frontend_processes(self) -> list[psutil.Process]:
        """Those of them that speak HTTP."""
        ...
