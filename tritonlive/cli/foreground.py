"""Run a stack in the foreground: start it, show what it does, watch it, and stop it on a signal."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from tritonlive.launch.supervisor import Supervisor

from .stack_options import complain

WATCH_S = 0.5
SIGNALLED = 128
"""Exit status of a start that a signal ended: this and the signal's number."""
INTERRUPTED = SIGNALLED + signal.SIGINT


def run(config: StackConfig, timeout_s: float) -> int:
    """Run the stack until a signal arrives or a process cannot be kept running; returns the exit status.

    A signal ends a ready stack with 0, as asked for. It ends a start with 128 and its number, as in a shell.
    timeout_s: how long the start may take.
    """
    console = Console()
    stop = stop_on_signals()
    display = PhaseDisplay(console)
    is_ready = False
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
            is_ready = True
            is_made_up = config.control_key is None
            print_ready(console, ready_lines(stack, ready, is_control_key_made_up=is_made_up, dtype_note=dtype_note))
            watch(stack, stop, console)
    except LaunchError as error:
        if not stop.is_set():
            return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    if is_ready or stop.number is None:
        return 0
    complain(StackCancelled(f"stopped by {stop.number.name} while starting"))
    return SIGNALLED + stop.number


class StopEvent(threading.Event):
    """Set when the stack is to stop, by the signal `number`."""

    number: signal.Signals | None = None


def watch(stack: Stack, stop: threading.Event, console: Console) -> None:
    """Watch a stack that is ready until `stop`, and restart what fails. Raises ProcessDiedError if it stays down."""

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, highlight=False, soft_wrap=True)

    if not stack.config.restart:
        stack.find_model_process()
        while not stop.wait(WATCH_S):
            stack.check()
        return
    with closing(Supervisor(stack, say)) as supervisor:
        while not stop.wait(WATCH_S):
            supervisor.look()


def stop_on_signals() -> StopEvent:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; the second one raises KeyboardInterrupt."""
    stop = StopEvent()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.number = signal.Signals(number)
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
