"""The systems of a comparison, which all start in the same way, and their helpers."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from bench.helpers import Broadcast, Offline, bare_broadcast, offline_llm
from bench.hop.server import Hop, hop
from bench.memory import Memory
from bench.peer import VllmServe
from bench.server import Server
from bench.trainer import Trainer
from tritonlive.launch import rust_binary
from tritonlive.launch.config import StackConfig, default_cache_dir
from tritonlive.launch.default_model import default_model
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.stack import Stack
from tritonlive.launch.tiny_model import tiny_model

T = TypeVar("T")
START_TIMEOUT_S = 300.0
AGAIN = " again"
"""Suffix of the label of a system's second copy."""


@dataclass(frozen=True)
class Settings:
    """Settings that all systems of a comparison share."""

    model: Path
    """Directory of the model."""
    args: tuple[str, ...] = ()
    """Arguments of `vllm serve`."""
    served_name: str = "model"


class TritonLive:
    """tritonlive's stack as a server, whose requests go to `url`: one of its front ends."""

    def __init__(self, stack: Stack, url: str | None = None) -> None:
        """url: by default that of the FastAPI front end."""
        self.url = url or stack.frontend_url
        self.grpc_url = stack.grpc_url
        """Triton's gRPC endpoint, `host:port`."""
        self.rollouts_url = f"grpc://{stack.grpc_url}"
        self.push_address = f"grpc://bench:{stack.control_key}@{stack.grpc_url}"
        """Address for pushes: Triton's gRPC endpoint with the control key."""
        self._stack = stack

    @property
    def rust(self) -> "TritonLive":
        """The same stack behind its Rust front end. Raises LaunchError if it has none."""
        if self._stack.rust_url is None:
            raise LaunchError("the stack has no Rust front end: start it with rust_port")
        return TritonLive(self._stack, self._stack.rust_url)

    def processes(self) -> list[psutil.Process]:
        """Processes of tritonserver, its descendants and the front ends."""
        return [*self._stack.triton.members(), *self.frontend_processes()]

    def frontend_processes(self) -> list[psutil.Process]:
        return self._stack.frontend.members()


@contextmanager
def tritonlive(settings: Settings, **options: Any) -> Iterator[TritonLive]:
    """tritonlive's stack. `options` are further fields of StackConfig."""
    config = StackConfig(
        model=str(settings.model), served_model_name=settings.served_name, extra_args=settings.args, **options
    )
    with Stack(config) as stack:
        stack.wait_ready(START_TIMEOUT_S)
        yield TritonLive(stack)


@contextmanager
def tritonlive_rust(settings: Settings) -> Iterator[TritonLive]:
    """tritonlive's stack behind vLLM's Rust front end."""
    with tritonlive(settings, rust_port=0) as server:
        yield server.rust


@contextmanager
def vllm_serve(settings: Settings) -> Iterator[Server]:
    """vLLM's own server."""
    with VllmServe(settings.model, settings.args, served_name=settings.served_name) as server:
        yield server


@contextmanager
def vllm_serve_rust(settings: Settings) -> Iterator[Server]:
    """vLLM's own server with its Rust front end."""
    binary = rust_binary.find_or_fetch(default_cache_dir(), lambda _detail: None)
    with VllmServe(settings.model, settings.args, served_name=settings.served_name, rust_binary=binary) as server:
        yield server


SYSTEMS: dict[str, Callable[[Settings], AbstractContextManager[Server]]] = {
    "tritonlive": tritonlive,
    "tritonlive-rust": tritonlive_rust,
    "vllm": vllm_serve,
    "vllm-rust": vllm_serve_rust,
}
"""Systems by their names on the command line and in the results."""

MODELS: dict[str, Callable[[Path], Path]] = {"smollm2": default_model, "tiny": tiny_model}
"""Models made on this machine, by name: a real one, and one so small that serving dominates its work."""


def model_path(name: str) -> Path:
    """Directory of a model by its name in `MODELS` (made on first use), or the path itself."""
    return MODELS[name](default_cache_dir()) if name in MODELS else Path(name)


class Systems:
    """The systems and helpers of one model's loads. Each starts on first use; all stop at the end of the `with` block.

    Args:
        settings: settings of all systems.
        labels: labels of ours and theirs: names in `SYSTEMS`; the second copy of a system has the suffix AGAIN.
        on_start: called with the name of a system or helper before it starts.
    """

    def __init__(self, settings: Settings, labels: tuple[str, str], on_start: Callable[[str], None]) -> None:
        self.settings = settings
        self.labels = labels
        self.memory: dict[str, Memory] = {}
        """Memory of ours and theirs by label, measured when each last stopped."""
        self._on_start = on_start
        self._started: dict[str, Any] = {}
        self._running = ExitStack()

    def server(self, label: str) -> Server:
        """The server with that label."""
        return self._once(label, lambda: self.start(label))

    def start(self, label: str) -> AbstractContextManager[Server]:
        """A new server with that label, for the caller's `with` block."""
        return SYSTEMS[label.removesuffix(AGAIN)](self.settings)

    @property
    def replica(self) -> TritonLive:
        """tritonlive's stack to which the trainer pushes."""
        return self.stack("tritonlive")

    @property
    def fleet(self) -> list[TritonLive]:
        """Two stacks, with half of the machine's cores each."""
        return [self.replica_on_half(0), self.replica_on_half(1)]

    def replica_on_half(self, half: int, *frontend_args: str) -> TritonLive:
        """A stack, not compiled, whose worker has half of the cores. By default, two workers share the same cores."""
        cores = sorted(os.sched_getaffinity(0))
        size = max(1, len(cores) // 2)
        mine = cores[-size:] if half else cores[:size]
        env = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, mine))}
        settings = replace(self.settings, args=(*self.settings.args, "--enforce-eager"))
        start = partial(tritonlive, settings, env=env, frontend_args=frontend_args)
        return self._once(" ".join((f"replica {half + 1}", *frontend_args)), start)

    def stack(self, label: str, **options: Any) -> TritonLive:
        """A stack of tritonlive. `options` are further fields of StackConfig."""
        return self._once(label, lambda: tritonlive(self.settings, **options))

    @property
    def offline(self) -> Offline:
        return self._once("offline LLM", lambda: offline_llm(self.settings.model, self.settings.args))

    @property
    def broadcast(self) -> Broadcast:
        return self._once("bare broadcast", lambda: bare_broadcast(self.settings.model))

    @property
    def hop(self) -> Hop:
        """A Triton server and its client, over an engine core that computes nothing."""
        return self._once("Triton over free tokens", lambda: hop(self.settings.model, self.settings.args))

    @property
    def trainer(self) -> Trainer:
        return self._once("trainer", lambda: closing(Trainer(self.settings.model)))

    def stop(self) -> None:
        """Stop everything, so that the next system has the whole machine."""
        try:
            self.memory |= {label: Memory.of(self._started[label]) for label in self.labels if label in self._started}
        finally:
            self._started.clear()
            self._running.close()

    def _once(self, label: str, start: Callable[[], AbstractContextManager[T]]) -> T:
        if label not in self._started:
            self._on_start(label)
            self._started[label] = self._running.enter_context(start())
        return self._started[label]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
