"""A load that two servers get, and one of the two as a side."""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import psutil

from bench.client import Client
from bench.goals import Goal
from bench.measure import Figures, Side
from bench.server import Server
from bench.systems import Systems

WARM_UP_SEED = 1_000_000
"""Prompts of a warm-up are not those of a measurement."""


@dataclass(frozen=True, kw_only=True)
class ServerLoad(ABC):
    """Work for a server; `vllm serve` is the other side.

    Prompts come from a fixed seed, other ones for each load, so no two of them share a cached prefix, and all systems
    get the same ones.
    """

    module: ClassVar[str]
    """Of the client."""

    goals: tuple[Goal, ...] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """How the results call it, as in `chat-stream/16`."""

    @abstractmethod
    def send(self, server: Server, served_name: str, seed: int, client: Client | None = None) -> Figures:
        """Do the work once, with a client that stands ready, or one started now.

        Raises LoadError if the server does not.
        """

    def warm_up(self, server: Server, served_name: str) -> None:
        """What is done once before the measurements."""
        self.send(server, served_name, WARM_UP_SEED)

    def rng(self, seed: int) -> np.random.Generator:
        """For the prompts: each load's own for each seed."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed])

    def side(self, systems: Systems, label: str) -> "ServerSide":
        return ServerSide(label, systems.server(label), self, systems.settings.served_name)

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        ours, theirs = (self.side(systems, label) for label in systems.labels)
        return ours, theirs


@dataclass
class ServerSide:
    """A server that gets the load."""

    name: str
    server: Server
    load: ServerLoad
    served_name: str
    _client: Client | None = None

    def processes(self) -> list[psutil.Process]:
        return self.server.processes()

    def warm_up(self) -> None:
        self.load.warm_up(self.server, self.served_name)

    def prepare(self) -> None:
        """The client imports what it needs while the machine comes to rest."""
        self._client = Client(self.load.module)

    def run(self, seed: int) -> Figures:
        client, self._client = self._client, None
        return self.load.send(self.server, self.served_name, seed, client)
