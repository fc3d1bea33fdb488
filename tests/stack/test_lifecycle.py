"""Processes that die, and front-end processes that share a port."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import httpx
import psutil
import pytest

from sync import Rollouts, UnavailableError
from tests.answers import ensure_running
from tritonlive.launch import Stack

from .conftest import MODEL, bearer, wait_until

COMPLETION = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def own_stack(two_front_ends: Stack) -> Iterator[Stack]:
    """A stack whose processes may be killed, with two front-end processes. It ends with this module."""
    ensure_running(two_front_ends)
    yield two_front_ends
    two_front_ends.kill()


def complete(stack: Stack, **changes: object) -> httpx.Response:
    url = f"{stack.frontend_url}/v1/completions"
    return httpx.post(url, json={**COMPLETION, **changes}, headers=bearer(stack.api_key), timeout=120)


def stream(stack: Stack, body: Mapping[str, object]) -> AbstractContextManager[httpx.Response]:
    url = f"{stack.frontend_url}/v1/completions"
    return httpx.stream("POST", url, json=body, headers=bearer(stack.api_key), timeout=60)


def is_healthy(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.frontend_url}/health", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def workers(stack: Stack) -> list[psutil.Process]:
    """The front end's serving processes, without the parent that watches them."""
    found = []
    for child in stack.frontend.members():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end, or be a zombie, while it is looked at
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_workers_share_the_port_and_a_dead_one_is_replaced(own_stack: Stack) -> None:
    before = workers(own_stack)
    assert len(before) == 2
    before[0].kill()
    wait_until(lambda: {p.pid for p in workers(own_stack)} > {before[1].pid} and len(workers(own_stack)) == 2, 120)
    assert complete(own_stack).status_code == 200


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(own_stack: Stack) -> None:
    assert complete(own_stack).status_code == 200
    (engine,) = own_stack.engine_core_pids
    body = {**COMPLETION, "max_tokens": 1900, "n": 64, "temperature": 1, "ignore_eos": True, "stream": True}
    with stream(own_stack, body) as answer:
        assert answer.status_code == 200, answer.read()
        events = answer.iter_lines()
        first = next(events)
        os.kill(engine, signal.SIGKILL)
        rest = list(events)
    error = [event for event in rest if '"error"' in event]
    assert error, f"the stream must say that it broke; it began with {first} and ended with {rest[-4:]}"
    wait_until(lambda: not is_healthy(own_stack), 10)
    refusal = complete(own_stack)
    assert refusal.status_code == 503, refusal.text
    wait_until(lambda: is_healthy(own_stack), 180)
    wait_until(lambda: complete(own_stack).status_code == 200, 30)
    assert own_stack.engine_core_pids != [engine]


def test_a_killed_engine_ends_rollouts_with_an_error_that_has_a_type(own_stack: Stack) -> None:
    (engine,) = own_stack.engine_core_pids
    killer = threading.Timer(1, os.kill, (engine, signal.SIGKILL))
    with Rollouts(f"grpc://{own_stack.grpc_url}", api_key=own_stack.api_key, timeout=60) as rollouts:
        killer.start()
        with pytest.raises(UnavailableError, match="died and is being started again"):
            rollouts.generate([[1, 2]] * 4, n=64, max_tokens=1900, ignore_eos=True)
        killer.join()
        with pytest.raises(UnavailableError, match="engine: died"):
            rollouts.score([[1, 2]])
        wait_until(lambda: is_healthy(own_stack), 180)
        assert rollouts.score([[1, 2]]).lengths.tolist() == [1]


def test_a_killed_front_end_leaves_nothing_running(own_stack: Stack) -> None:
    body = {**COMPLETION, "max_tokens": 1900, "n": 64, "temperature": 1, "ignore_eos": True, "stream": True}
    try:
        with stream(own_stack, body) as answer:
            next(answer.iter_lines())
            own_stack.frontend.kill()
    except httpx.TransportError:
        pass
    wait_until(lambda: running(own_stack) == 0, 10)


def running(stack: Stack) -> float:
    lines = httpx.get(stack.metrics_url, timeout=30).text.splitlines()
    (line,) = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return float(line.split()[-1])
