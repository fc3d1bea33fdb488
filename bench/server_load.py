"""A load of two servers, and a server as one of its sides."""

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
"""Seed of the warm-up's prompts, which must differ from those of a measurement."""


@dataclass(frozen=True, kw_only=True)
class ServerLoad(ABC):
    """Work for a server. The other side is `vllm serve`.

    Prompts have a fixed seed for each load. So all systems get the same prompts, and no two loads share a cached
    prefix.
    """

    module: ClassVar[str]
    """Module of the client."""

    goals: tuple[Goal, ...] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in the results, such as `chat-stream/16`."""

    @abstractmethod
    def send(self, server: Server, served_name: str, seed: int, client: Client | None = None) -> Figures:
        """Do the work once, with a client that is already running, or with a new one.

        Raises LoadError if the server fails.
        """

    def warm_up(self, server: Server, served_name: str) -> None:
        """Do the work once before the measurements."""
        self.send(server, served_name, WARM_UP_SEED)

    def rng(self, seed: int) -> np.random.Generator:
        """Random numbers for the prompts; they depend on the load and on the seed."""
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
        """Start the client, which imports its libraries while the machine becomes idle."""
        self._client = Client(self.load.module)

    def run(self, seed: int) -> Figures:
        client, self._client = self._client, None
        return self.load.send(self.server, self.served_name, seed, client)
