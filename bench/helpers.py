"""Baselines other than vLLM's server: its offline `LLM` and a bare broadcast. Each has its own processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.child import Child
from bench.peer import ENVIRONMENT
from tritonlive.launch import ports
from tritonlive.launch.config import default_cache_dir


class Offline:
    """vLLM's offline `LLM` (bench/offline.py)."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def processes(self) -> list[psutil.Process]:
        return self._child.processes()

    def chat(self, conversations: list[list[dict[str, str]]], max_tokens: int) -> dict[str, float]:
        """Answer all conversations with one `LLM.chat`; returns its figures."""
        return self._child.ask({"what": "chat", "conversations": conversations, "max_tokens": max_tokens})

    def load_seconds(self) -> float:
        """Load the next set of weights from memory; returns the worker's seconds."""
        return self._child.ask({"what": "load"})


class Broadcast:
    """Two processes that broadcast the checkpoint's bytes (bench/broadcast.py)."""

    def __init__(self, sender: Child, receiver: Child) -> None:
        self._sender = sender
        self._receiver = receiver

    def processes(self) -> list[psutil.Process]:
        return [*self._sender.processes(), *self._receiver.processes()]

    def seconds(self) -> float:
        """Make one broadcast; returns its seconds by the sender's clock."""
        self._receiver.send({})
        seconds = self._sender.ask({})
        self._receiver.receive()
        return seconds


@contextmanager
def offline_llm(model: Path, args: tuple[str, ...]) -> Iterator[Offline]:
    """vLLM's offline `LLM` with a server's arguments. The engine is ready on entry."""
    log_path = default_cache_dir() / "logs" / "bench-offline.log"
    with Child("bench.offline", [str(model), *args], ENVIRONMENT, log_path) as child:
        offline = Offline(child)
        offline.load_seconds()  # an answer shows that the engine is ready
        yield offline


@contextmanager
def bare_broadcast(checkpoint: Path) -> Iterator[Broadcast]:
    """The two processes of a broadcast, already in their process group."""
    (port,) = ports.pick_free("127.0.0.1", 1)
    # A push's bytes go over the loopback. By default gloo would use the address of the machine's name.
    env = {"GLOO_SOCKET_IFNAME": "lo"}

    def start(rank: int) -> Child:
        log_path = default_cache_dir() / "logs" / f"bench-broadcast-{rank}.log"
        return Child("bench.broadcast", [str(rank), str(port), str(checkpoint)], env, log_path)

    with start(0) as sender, start(1) as receiver:
        broadcast = Broadcast(sender, receiver)
        broadcast.seconds()
        yield broadcast
