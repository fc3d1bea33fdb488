"""What servers and pushes are held against besides vLLM's server; each runs in processes of its own."""

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
        """One `LLM.chat` of them all; its figures."""
        return self._child.ask({"what": "chat", "conversations": conversations, "max_tokens": max_tokens})

    def load_seconds(self) -> float:
        """Load weights from memory, other ones each time; how long the worker took."""
        return self._child.ask({"what": "load"})


class Broadcast:
    """Two processes that broadcast the checkpoint's bytes (bench/broadcast.py)."""

    def __init__(self, sender: Child, receiver: Child) -> None:
        self._sender = sender
        self._receiver = receiver

    def processes(self) -> list[psutil.Process]:
        return [*self._sender.processes(), *self._receiver.processes()]

    def seconds(self) -> float:
        """One broadcast, by the sender's clock."""
        self._receiver.send({})
        seconds = self._sender.ask({})
        self._receiver.receive()
        return seconds


@contextmanager
def offline_llm(model: Path, args: tuple[str, ...]) -> Iterator[Offline]:
    """The engine, with vLLM's arguments as a server has them; up on entry."""
    log_path = default_cache_dir() / "logs" / "bench-offline.log"
    with Child("bench.offline", [str(model), *args], ENVIRONMENT, log_path) as child:
        offline = Offline(child)
        offline.load_seconds()  # the engine is up when it answers
        yield offline


@contextmanager
def bare_broadcast(checkpoint: Path) -> Iterator[Broadcast]:
    """Both processes, met."""
    (port,) = ports.pick_free("127.0.0.1", 1)
    # gloo otherwise takes the address the machine's name has, and a push's bytes go over this one.
    env = {"GLOO_SOCKET_IFNAME": "lo"}

    def start(rank: int) -> Child:
        log_path = default_cache_dir() / "logs" / f"bench-broadcast-{rank}.log"
        return Child("bench.broadcast", [str(rank), str(port), str(checkpoint)], env, log_path)

    with start(0) as sender, start(1) as receiver:
        broadcast = Broadcast(sender, receiver)
        broadcast.seconds()
        yield broadcast
