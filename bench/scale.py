"""Loads that compare several front-end processes, and several replicas, with one of each."""

from dataclasses import dataclass

import psutil

from bench.goals import Goal
from bench.loads import Completions
from bench.measure import Side
from bench.server import Server
from bench.server_load import ServerSide
from bench.systems import Systems, TritonLive

GOALS = (Goal("tokens/s", "higher"), Goal("ttft p50 ms", "lower", label="TTFT"))


@dataclass(frozen=True)
class Workers:
    """Streams through two front-end processes, beside the same streams through one."""

    name: str = "workers/2"
    goals: tuple[Goal, ...] = GOALS

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        systems.stop()  # the two have the machine to themselves
        one, two = systems.replica, systems.stack("2 workers", workers=2)
        return side(self.name, "2 workers", two, systems), side(self.name, "1 worker", one, systems)


@dataclass(frozen=True)
class Replicas:
    """Streams through a front end over two replicas, beside the same streams through one of them.

    The replicas' workers have half of the machine's cores each.
    """

    name: str = "replicas/2"
    goals: tuple[Goal, ...] = GOALS

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        systems.stop()  # the two have the machine to themselves
        first = systems.replica_on_half(0)
        both = Both(systems.replica_on_half(1, "--triton-url", first.grpc_url), first)
        return side(self.name, "2 replicas", both, systems), side(self.name, "1 replica", first, systems)


class Both:
    """A stack whose front end also serves another stack's replica."""

    def __init__(self, stack: TritonLive, other: TritonLive) -> None:
        self.url, self.rollouts_url = stack.url, stack.rollouts_url
        self._stack, self._other = stack, other

    def processes(self) -> list[psutil.Process]:
        others_frontend = {process.pid for process in self._other.frontend_processes()}
        others = [process for process in self._other.processes() if process.pid not in others_frontend]
        return [*self._stack.processes(), *others]

    def frontend_processes(self) -> list[psutil.Process]:
        return self._stack.frontend_processes()


def side(load: str, name: str, server: Server, systems: Systems) -> Side:
    streams = Completions(kind=load, concurrency=64, num_requests=256, max_tokens=64, stream=True)
    return ServerSide(name, server, streams, systems.settings.served_name)
