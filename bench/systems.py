"""The systems that are compared, all started the same way, and the helpers beside them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psutil

from bench.child import Child
from bench.peer import ENVIRONMENT, VllmServe
from bench.trainer import Trainer
from launch import ports
from launch.config import StackConfig, default_cache_dir
from launch.default_model import default_model
from launch.stack import Stack
from launch.tiny_model import tiny_model

START_TIMEOUT_S = 300.0
AGAIN = " again"
"""What the label of a second copy of a system ends with."""


@dataclass(frozen=True)
class Settings:
    """What every system of a comparison is given alike."""

    model: Path
    """Directory of the model."""
    args: tuple[str, ...] = ()
    """vLLM arguments, as on the command line of `vllm serve`."""
    served_name: str = "model"


class Server(Protocol):
    """A running system that speaks the OpenAI API."""

    url: str

    def processes(self) -> list[psutil.Process]:
        """Every process of the system, for its processor time and memory."""
        ...


class TritonLive:
    """tritonlive's stack, seen as one server."""

    def __init__(self, stack: Stack) -> None:
        self.url = stack.frontend_url
        self.push_address = f"grpc://bench:{stack.control_key}@{stack.grpc_url}"
        """Triton itself, with the control key."""
        self._stack = stack

    def processes(self) -> list[psutil.Process]:
        """tritonserver with everything below it, and the front end."""
        return [*self._stack.triton.members(), *self._stack.frontend.members()]


@contextmanager
def tritonlive(settings: Settings) -> Iterator[TritonLive]:
    """Our stack, over HTTP."""
    config = StackConfig(model=str(settings.model), served_model_name=settings.served_name, extra_args=settings.args)
    with Stack(config) as stack:
        stack.wait_ready(START_TIMEOUT_S)
        yield TritonLive(stack)


@contextmanager
def vllm_serve(settings: Settings) -> Iterator[Server]:
    """vLLM's own server."""
    with VllmServe(settings.model, settings.args, served_name=settings.served_name) as server:
        yield server


SYSTEMS: dict[str, Callable[[Settings], AbstractContextManager[Server]]] = {
    "tritonlive": tritonlive,
    "vllm": vllm_serve,
}
"""Systems by the name the command line and the results use."""

MODELS: dict[str, Callable[[Path], Path]] = {"smollm2": default_model, "tiny": tiny_model}
"""Models made on this machine, by name: one that says something, and one so small that serving it is all the work."""


def model_path(name: str) -> Path:
    """Directory of a model by its name in `MODELS` (made on first use), or the path itself."""
    return MODELS[name](default_cache_dir()) if name in MODELS else Path(name)


class Offline:
    """vLLM's offline `LLM` in a process of its own (bench/offline.py)."""

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


class Systems:
    """What the loads of one model need, each started when a load first asks for it, all stopped when the `with` ends.

    Args:
        settings: what the systems are given.
        labels: ours and theirs: names in `SYSTEMS`; the second copy of one has " again" at its end.
        on_start: called with the name of what is being started.
    """

    def __init__(self, settings: Settings, labels: tuple[str, str], on_start: Callable[[str], None]) -> None:
        self.settings = settings
        self.labels = labels
        self._on_start = on_start
        self._servers: dict[str, Server] = {}
        self._running = ExitStack()

    def server(self, label: str) -> Server:
        """The server of that label."""
        if label not in self._servers:
            self._on_start(label)
            start = SYSTEMS[label.removesuffix(AGAIN)]
            self._servers[label] = self._running.enter_context(start(self.settings))
        return self._servers[label]

    def replicas(self, count: int) -> list[TritonLive]:
        """The first one or two stacks of ours."""
        servers = [self.server(label) for label in ("tritonlive", f"tritonlive{AGAIN}")[:count]]
        return [server for server in servers if isinstance(server, TritonLive)]

    @cached_property
    def offline(self) -> Offline:
        self._on_start("offline LLM")
        child = self._child("bench.offline", [str(self.settings.model), *self.settings.args], ENVIRONMENT)
        offline = Offline(child)
        offline.load_seconds()  # the engine is up when it answers
        return offline

    @cached_property
    def broadcast(self) -> Broadcast:
        self._on_start("bare broadcast")
        (port,) = ports.pick_free("127.0.0.1", 1)
        # gloo otherwise takes the address the machine's name has, and a push's goes over this one.
        sender, receiver = (
            self._child(
                "bench.broadcast", [str(rank), str(port), str(self.settings.model)], {"GLOO_SOCKET_IFNAME": "lo"}
            )
            for rank in (0, 1)
        )
        return Broadcast(sender, receiver)

    @cached_property
    def trainer(self) -> Trainer:
        return self._running.enter_context(closing(Trainer(self.settings.model)))

    def _child(self, module: str, arguments: list[str], env: dict[str, str]) -> Child:
        log_path = default_cache_dir() / "logs" / f"{module}-{arguments[0].rpartition('/')[2]}.log"
        return self._running.enter_context(Child(module, arguments, env, log_path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)
