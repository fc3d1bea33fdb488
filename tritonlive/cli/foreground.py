"""Run a stack in the foreground: start it, show what it does, watch it, and stop it on a signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from tritonlive.launch import compiler, dtype
from tritonlive.launch.config import StackConfig
from tritonlive.launch.default_model import NAME as DEFAULT_MODEL_NAME
from tritonlive.launch.display import PhaseDisplay, print_ready, ready_lines
from tritonlive.launch.errors import LaunchError, StackCancelled
from tritonlive.launch.model_choice import with_model
from tritonlive.launch.ports import ReservedPorts
from tritonlive.launch.stack import Stack

from .stack_options import complain

WATCH_S = 0.5
INTERRUPTED = 130


def run(config: StackConfig, timeout_s: float) -> int:
    """Run the stack until a signal arrives or a process dies; returns the exit status.

    timeout_s: how long the start may take.
    """
    console = Console()
    stop = stop_on_signals()
    display = PhaseDisplay(console)
    try:
        with display:
            ports = ReservedPorts(config)  # before the model is prepared, which takes a while
            config = _with_eager(config, console)
            display.update(f"model {config.model or DEFAULT_MODEL_NAME}")
            config, dtype_note = dtype.choose(with_model(config))
            stack = Stack(config, ports=ports, progress=display.update, cancel=stop)
        with _stopped_at_the_end(stack, display):
            with display:
                stack.start()
                ready = stack.wait_ready(timeout_s)
            is_made_up = config.control_key is None
            print_ready(console, ready_lines(stack, ready, is_control_key_made_up=is_made_up, dtype_note=dtype_note))
            while not stop.wait(WATCH_S):
                stack.check()
    except StackCancelled:
        return 0
    except LaunchError as error:
        return 0 if stop.is_set() else complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def stop_on_signals() -> threading.Event:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; the second one raises KeyboardInterrupt."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)
    return stop


@contextmanager
def _stopped_at_the_end(stack: Stack, display: PhaseDisplay) -> Iterator[None]:
    """Stop the stack however the block ends, and show the stop."""
    try:
        yield
    finally:
        with display:
            stack.stop()


def _with_eager(config: StackConfig, console: Console) -> StackConfig:
    """`config` without compilation, if this machine cannot compile."""
    if compiler.EAGER in config.extra_args or not (missing := compiler.missing_packages()):
        return config
    console.print(f"Not compiling the model, so it is slower; to change that: apt-get install {' '.join(missing)}")
    return replace(config, extra_args=(*config.extra_args, compiler.EAGER))
