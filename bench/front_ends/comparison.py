"""The loads of all front ends, and the systems behind them."""

from collections.abc import Collection, Sequence
from typing import Any

from bench.front_ends.grpc_side import GrpcSide
from bench.front_ends.names import ALL, GRPC, OURS, OURS_RUST
from bench.front_ends.stream_load import Generator, StreamLoad, StreamSide
from bench.front_ends.targets import CEILING, FLOOD
from bench.loads import Chat, Completions, HttpLoad
from bench.measure import Side
from bench.server import Server
from bench.server_load import ServerSide
from bench.systems import Systems, TritonLive

AnyLoad = StreamLoad | HttpLoad
REQUESTS = 2
"""Requests for each concurrent one: the second ones begin while others run."""
LEAST_REQUESTS = 8
MAX_TOKENS = 64
PROMPT_TOKENS = 32


def plan(concurrencies: Sequence[int]) -> list[AnyLoad]:
    """Streams and whole answers, completions and chats."""
    loads: list[AnyLoad] = []
    for concurrency in concurrencies:
        size: dict[str, Any] = {
            "concurrency": concurrency,
            "num_requests": max(REQUESTS * concurrency, LEAST_REQUESTS),
            "max_tokens": MAX_TOKENS,
        }
        loads.append(StreamLoad(kind="completions", prompt_tokens=PROMPT_TOKENS, **size))
        loads.append(StreamLoad(kind="chat", prompt_tokens=PROMPT_TOKENS, **size))
        loads.append(Completions(prompt_words=PROMPT_TOKENS, **size))
        loads.append(Chat(prompt_words=PROMPT_TOKENS, **size))
    return loads


def aiperf_loads() -> list[AnyLoad]:
    """Chats at 64 at a time, sent by aiperf."""
    size: dict[str, Any] = {"concurrency": 64, "num_requests": 64 * REQUESTS, "max_tokens": MAX_TOKENS}
    return [StreamLoad(kind="chat", prompt_tokens=PROMPT_TOKENS, tool="aiperf", label="aiperf ", **size)]


def ceilings() -> dict[float, list[StreamLoad]]:
    """Loads over free tokens, by the seconds of a step: at an engine's pace, and faster than a front end writes."""
    size: dict[str, Any] = {"concurrency": 64, "max_tokens": 128}
    paced = StreamLoad(kind="chat", num_requests=64, label=f"{CEILING}30 ms ", **size)
    flood = StreamLoad(kind="chat", num_requests=128, label=FLOOD, **size)
    return {0.03: [paced], 0.002: [flood]}


def sides(systems: Systems, load: AnyLoad, generator: Generator, names: Collection[str] = ALL) -> list[Side]:
    """The systems of those names as sides of the load. One stack is behind our front ends and Triton's endpoint."""
    served_name = systems.settings.served_name
    found: list[Side] = []
    for label in ALL:
        if label not in names or (label == GRPC and "completions" not in load.name):  # Triton has no chats
            continue
        if label == GRPC:
            found.append(GrpcSide(GRPC, _stack(systems), load, stream=isinstance(load, StreamLoad)))
        elif isinstance(load, StreamLoad):
            server = _server(systems, label)
            found.append(StreamSide(label, server.url, served_name, server.processes, load, generator))
        else:
            found.append(ServerSide(label, _server(systems, label), load, served_name))
    return found


def start(systems: Systems, name: str) -> None:
    """Start the system of that name, unless it runs. Raises LaunchError if it does not start."""
    if name == GRPC:
        _stack(systems)
    else:
        _server(systems, name)


def _stack(systems: Systems) -> TritonLive:
    return systems.stack(OURS, rust_port=0)


def _server(systems: Systems, label: str) -> Server:
    if label == OURS:
        return _stack(systems)
    return _stack(systems).rust if label == OURS_RUST else systems.server(label)
