"""Row 28, seen by a client: one front end over two Triton servers, of which one dies, is fenced, or lags behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx
import pytest

from sync import InvalidError, UnavailableError, WeightSync
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from tests.answers import PROMPT, Weights, ensure_running
from tests.stack.conftest import bearer, wait_until
from tritonlive.launch import Stack
from tritonlive.wire.machine import STUB_NAME

pytestmark = pytest.mark.row(28)


@pytest.fixture(scope="module")
def second(stack: Stack, second_stack: Stack) -> Iterator[Stack]:
    """The second replica, whose front end now knows both replicas. It ends with this module."""
    second_stack.frontend.stop(15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            second_stack.frontend, "command", [*second_stack.frontend.command, "--triton-url", stack.grpc_url]
        )
        if second_stack.triton.is_running:
            second_stack.frontend.start()
            second_stack.wait_ready(240)
        ensure_running(second_stack)
        yield second_stack
        second_stack.kill()


@pytest.fixture(scope="module")
def targets(stack: Stack, second: Stack) -> list[str]:
    return [f"grpc://{stack.grpc_url}", f"grpc://{second.grpc_url}"]


@pytest.fixture
def fleet(stack: Stack, second: Stack, targets: list[str], weights: Weights) -> Iterator[WeightSync]:
    """A trainer of both replicas, which serve the checkpoint's weights as version "original"."""
    with WeightSync(targets, backend="gloo", control_key=stack.control_key, timeout=60) as sync:
        sync.push(weights, "original")
        wait_until(lambda: left_out(second) == [None, None], 30)
        yield sync


@pytest.fixture
def control(second: Stack, fleet: WeightSync) -> Iterator[ControlClient]:
    """Control of the second replica, as the trainer that holds its lease."""
    with connect(Target.parse(f"grpc://{second.grpc_url}", second.control_key), timeout=60) as client:
        client.holder = fleet.holder
        yield client


def complete(replica: Stack, **changes: Any) -> httpx.Response:
    url = f"{replica.frontend_url}/v1/completions"
    return httpx.post(url, json={**PROMPT, **changes}, headers=bearer(replica.api_key), timeout=60)


def statuses(replica: Stack) -> list[dict[str, Any]]:
    """Statuses of the second replica and of the first, from the second's front end."""
    answer = httpx.get(f"{replica.frontend_url}/replica_status", headers=bearer(replica.control_key), timeout=30)
    return answer.raise_for_status().json()["replicas"]


def left_out(replica: Stack) -> list[str | None]:
    return [status["left_out"] for status in statuses(replica)]


def processes(replica: Stack) -> list[str]:
    return [process.name() for process in replica.triton.members()]


class Load:
    """Clients that send requests until the block ends. `answers` holds (time sent, answer)."""

    def __init__(self, replica: Stack, num_clients: int = 6) -> None:
        self.answers: list[tuple[float, httpx.Response]] = []
        self._replica = replica
        self._is_over = threading.Event()
        self._clients = ThreadPoolExecutor(num_clients)
        self._asking = [self._clients.submit(self._ask) for _ in range(num_clients)]

    def since(self, began: float) -> list[httpx.Response]:
        """Answers to the requests sent after `began`, by time.monotonic."""
        return [answer for sent, answer in sorted(self.answers, key=lambda pair: pair[0]) if sent > began]

    def _ask(self) -> None:
        while not self._is_over.is_set():
            sent = time.monotonic()
            self.answers.append((sent, complete(self._replica, max_tokens=100, ignore_eos=True)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._clients.shutdown()
        for asked in self._asking:
            asked.result()


def test_requests_spread_and_a_push_flips_both(
    stack: Stack, second: Stack, fleet: WeightSync, weights: Weights, perturbed: Weights
) -> None:
    before = complete(second).json()["choices"][0]["text"]
    with Load(second):
        wait_until(lambda: all(status["num_running"] > 0 for status in statuses(second)), 30)
        metrics = httpx.get(f"{second.frontend_url}/metrics", timeout=30).text
        assert f'tritonlive_replica_eligible{{replica="{stack.grpc_url}"}} 1.0' in metrics
        fleet.push(perturbed, "flipped")
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: complete(second), range(8)))
    after = {(answer.json()["choices"][0]["text"], answer.headers["x-weight-version"]) for answer in answers}
    assert len(after) == 1, "both make the same of it"
    ((text, version),) = after
    assert (text != before, version) == (True, "flipped")


def test_n_answers_to_a_prompt_and_operations_on_all(stack: Stack, second: Stack, fleet: WeightSync) -> None:
    answer = complete(second, n=4, temperature=1).json()
    assert len(answer["choices"]) == 4
    with httpx.Client(base_url=second.frontend_url, headers=bearer(second.control_key), timeout=30) as trainer:
        assert trainer.get("/get_world_size").json() == {"world_size": 2}
        assert trainer.get("/weight_info").json() == {"weight_version": "original"}
        trainer.post("/pause").raise_for_status()
        assert [status["state"] for status in statuses(second)] == ["paused", "paused"]
        trainer.post("/resume").raise_for_status()
        assert trainer.get("/is_paused").json() == {"is_paused": False}
        refusal = trainer.post("/start_weight_update")
        assert (refusal.status_code, f"grpc://{stack.grpc_url}" in refusal.text) == (422, True)
    with WeightSync(second.frontend_url, backend="gloo", control_key=second.control_key) as sync:
        with pytest.raises(InvalidError, match="a front end over several replicas"):
            sync.push({}, "never")


def test_a_fenced_one_gets_nothing_and_no_client_notices(
    second: Stack, fleet: WeightSync, control: ControlClient, weights: Weights
) -> None:
    with Load(second) as load:
        wait_until(lambda: all(status["num_running"] > 0 for status in statuses(second)), 30)
        control.fence("for a test")
        wait_until(lambda: statuses(second)[0]["num_running"] == 0, 10)
        fenced, first = statuses(second)
        assert (fenced["state"], "for a test" in fenced["left_out"]) == ("fenced", True)
        assert first["left_out"] is None
        assert fleet.catch_up(weights, "original") is not None
        wait_until(lambda: statuses(second)[0]["num_running"] > 0, 10)
    assert {answer.status_code for _, answer in load.answers} == {200}


def test_one_is_killed_and_the_other_answers_until_it_has_caught_up(
    second: Stack, fleet: WeightSync, weights: Weights
) -> None:
    with Load(second) as load:
        wait_until(lambda: all(status["num_running"] > 0 for status in statuses(second)), 30)
        os.kill(second.triton.pid, signal.SIGKILL)
        wait_until(lambda: left_out(second)[0] is not None, 10)
        known = time.monotonic()
        wait_until(lambda: len(load.since(known)) >= 6, 60)
    assert {answer.status_code for answer in load.since(known)} == {200}
    failed = [answer for _, answer in load.answers if answer.status_code != 200]
    assert {answer.status_code for answer in failed} <= {503}
    assert all("connection to Triton" in answer.text for answer in failed)
    assert len(failed) <= 6, "those that had begun there"

    wait_until(lambda: not second.triton.is_running, 10)
    wait_until(lambda: processes(second) == [], 30)  # its model's end by themselves
    second.triton.start()
    wait_until(lambda: left_out(second)[0] == "serves 'default', not 'original'", 180)
    assert {complete(second).headers["x-weight-version"] for _ in range(4)} == {"original"}

    def has_caught_up() -> bool:
        try:
            return fleet.catch_up(weights, "original") is not None
        except UnavailableError:  # the trainer reconnects within a second
            return False

    wait_until(has_caught_up, 10)
    assert second.frontend.log_contains(f"the replica {second.grpc_url} cannot generate: the connection to Triton")
    wait_until(lambda: left_out(second) == [None, None], 10)
    with Load(second):
        wait_until(lambda: all(status["num_running"] > 0 for status in statuses(second)), 30)


@pytest.mark.row(30)
def test_one_stops_after_what_runs_there_and_leaves_nothing_behind(second: Stack, fleet: WeightSync) -> None:
    """A front end and a trainer are connected. Triton alone would wait 30 s and then close their connections."""
    with Load(second) as load:
        wait_until(lambda: all(status["num_running"] > 0 for status in statuses(second)), 30)
        os.kill(second.triton.pid, signal.SIGTERM)
        wait_until(lambda: not second.triton.is_running, 25)
    assert {answer.status_code for _, answer in load.answers} == {200}
    assert second.triton.log_contains("successfully unloaded 'llm'")
    wait_until(lambda: processes(second) == [], 5)


@pytest.mark.row(30)
def test_one_that_is_killed_leaves_nothing_behind_though_its_stub_hangs(second: Stack) -> None:
    """A stub that waits for a lock of the killed server runs no Python. The test stops the stub instead."""
    if not second.triton.is_running:
        second.triton.start()
        wait_until(lambda: statuses(second)[0]["state"] == "serving", 180)
    (stub,) = [process for process in second.triton.members() if process.name() == STUB_NAME]
    stub.suspend()
    os.kill(second.triton.pid, signal.SIGKILL)
    wait_until(lambda: processes(second) == [], 30)
