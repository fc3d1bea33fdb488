"""The interface of a running system in a comparison."""

from typing import Protocol

import psutil


class Server(Protocol):
    """A running system that speaks the OpenAI API."""

    url: str
    rollouts_url: str
    """Address for rollouts: `grpc://` if the system answers with arrays, `http://` if with JSON."""

    def processes(self) -> list[psutil.Process]:
        """All processes of the system; their processor time and memory are measured."""
        ...

    def frontend_processes(self) -> list[psutil.Process]:
        """The processes that serve HTTP."""
        ...
