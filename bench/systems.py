"""The systems that are compared, all started the same way: `with start(name, settings) as server`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from bench.peer import VllmServe
from launch.config import StackConfig, default_cache_dir
from launch.default_model import default_model
from launch.stack import Stack
from launch.tiny_model import tiny_model

START_TIMEOUT_S = 300.0


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
        self._stack = stack

    def processes(self) -> list[psutil.Process]:
        """tritonserver with everything below it, and the front end."""
        return [*self._stack.triton.members(), *self._stack.frontend.members()]


@contextmanager
def tritonlive(settings: Settings) -> Iterator[Server]:
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
