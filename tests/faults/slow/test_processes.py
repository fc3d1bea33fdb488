"""Rows 29, 30, 33 and 41: processes of a served stack are killed one after the other, and it comes back by itself."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sync import WeightSync
from tests.answers import Weights
from tests.faults.slow.served import CONTROL_KEY, RECOVERY_S, Served, Streams, is_finished, is_told, seconds_until
from tests.stack.conftest import wait_until
from tritonlive.launch.shared_memory import FOLDER, SharedMemory

logger = logging.getLogger(__name__)

UNREADY_LIMIT_S = 2.0
TOLD_LIMIT_S = 5.0
BACK = "serving again after"


@pytest.fixture(scope="module")
def served(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A stack that its launcher keeps running."""
    served = Served(tiny_model_dir, tmp_path_factory.mktemp("served"))
    served.wait_ready()
    yield served
    served.close()


def assert_told(outcomes: list[str]) -> None:
    """Every client saw an error event, or had its whole answer. At least one was told."""
    assert all(is_told(last) or is_finished(last) for last in outcomes), outcomes
    assert any(is_told(last) for last in outcomes), outcomes


def assert_refused(served: Served) -> None:
    """A request in the meantime is refused at once, with the time to wait."""
    began = time.monotonic()
    answer = served.complete()
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert time.monotonic() - began < 10


def come_back(served: Served, report: dict[str, float]) -> None:
    """Wait until it serves again: the checkpoint's weights, and a request is answered."""
    report["back"] = seconds_until(served.is_healthy, RECOVERY_S)
    answer = served.complete()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-weight-version"] == "default"
    logger.info("seconds: %s", {name: round(value, 1) for name, value in report.items()})


def push(served: Served, weights: Weights) -> None:
    with WeightSync(served.frontend_url, backend="gloo", control_key=CONTROL_KEY, timeout=60) as trainer:
        trainer.push(weights, "pushed")
    assert served.complete().headers["x-weight-version"] == "pushed"


@pytest.mark.row(29)
@pytest.mark.row(41)
def test_the_engine_is_killed_and_the_model_starts_another(served: Served, weights: Weights) -> None:
    """Twice: what an engine's death leaves in the model's process does not add up."""
    stub, leftovers = served.stub, []
    for _ in range(2):
        push(served, weights)
        report = {}
        with Streams(served.frontend_url) as streams:
            served.engine.kill()
            report["unready"] = seconds_until(lambda: not served.is_healthy(), UNREADY_LIMIT_S)
            assert_told(streams.wait(TOLD_LIMIT_S))
        assert_refused(served)
        assert served.status()["state"] == "restarting"
        come_back(served, report)
        time.sleep(1)  # the last of the old connections are closed
        leftovers.append((stub.num_fds(), stub.num_threads(), stub.memory_info().rss >> 20))
    assert served.stub == stub
    (fds, threads, memory), (fds_later, threads_later, memory_later) = leftovers
    logger.info("descriptors, threads and MiB of the model's process: %s", leftovers)
    assert fds_later <= fds + 2
    assert threads_later <= threads + 1
    assert memory_later <= memory + 20


@pytest.mark.row(29)
def test_an_engine_that_stands_still_for_20_s_goes_on(served: Served) -> None:
    with Streams(served.frontend_url, max_tokens=300) as streams:
        served.engine.suspend()
        time.sleep(20)
        assert streams.outcomes == []
        served.engine.resume()
        assert all(is_finished(last) for last in streams.wait(60))
    assert served.complete().status_code == 200


@pytest.mark.row(33)
def test_the_models_process_is_killed_and_triton_is_started_again(served: Served, weights: Weights) -> None:
    """Triton itself stays up, and says that it is ready."""
    push(served, weights)
    before, frontend, report = served.triton.pid, served.frontend.pid, {}
    said = served.count(BACK)
    with Streams(served.frontend_url) as streams:
        served.stub.kill()
        report["unready"] = seconds_until(lambda: not served.is_healthy(), UNREADY_LIMIT_S)
        assert_told(streams.wait(TOLD_LIMIT_S))
        assert not served.is_triton_ready()
    assert_refused(served)
    come_back(served, report)
    assert served.triton.pid != before
    assert served.frontend.pid == frontend
    assert re.search(
        r"the model's process in tritonserver \(\d+\) ended; starting tritonserver", served.said.read_text()
    )
    wait_until(lambda: served.count(BACK) == said + 1, 10)


@pytest.mark.row(29)
@pytest.mark.row(30)
def test_tritonserver_is_killed_and_started_again(served: Served, weights: Weights) -> None:
    push(served, weights)
    said, report = served.count(BACK), {}
    with Streams(served.frontend_url) as streams:
        served.triton.kill()
        report["unready"] = seconds_until(lambda: not served.is_healthy(), UNREADY_LIMIT_S)
        assert_told(streams.wait(TOLD_LIMIT_S))
    assert_refused(served)
    come_back(served, report)
    wait_until(lambda: served.count(BACK) == said + 1, 10)


@pytest.mark.row(30)
def test_the_front_end_is_killed_and_started_again(served: Served) -> None:
    before, engine, said, report = served.frontend.pid, served.engine, served.count(BACK), {}
    with Streams(served.frontend_url) as streams:
        served.frontend.kill()
        assert all("Error" in last for last in streams.wait(TOLD_LIMIT_S)), "the connections break"
        wait_until(lambda: served.num_running() == 0, 5)
    report["back"] = seconds_until(served.is_healthy, RECOVERY_S)
    assert served.complete().status_code == 200
    assert served.frontend.pid != before
    assert served.engine == engine
    wait_until(lambda: served.count(BACK) == said + 1, 10)


@pytest.mark.row(30)
def test_ctrl_c_leaves_nothing_behind(served: Served) -> None:
    """After all these deaths. Streams that do not end within the front end's drain are told."""
    processes = served.processes()
    with Streams(served.frontend_url, 32) as streams:
        began = time.monotonic()
        assert served.stop(60) == 0
        logger.info("stopped after %.1f s", time.monotonic() - began)
        outcomes = streams.wait(TOLD_LIMIT_S)
        assert all(is_told(last) or is_finished(last) for last in outcomes), outcomes
    logger.info("%d of %d streams had to be told", sum(map(is_told, outcomes)), len(outcomes))
    assert [each for each in processes if is_alive(each)] == []
    assert list(FOLDER.glob(f"tritonlive_{served.process.pid}_*")) == []


@pytest.mark.row(30)
def test_the_launcher_is_killed(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The kernel tells its processes. What stays is small, and the next start removes it."""
    served = Served(tiny_model_dir, tmp_path)
    try:
        served.wait_ready()
        launcher, processes = served.process.pid, served.processes()
        with Streams(served.frontend_url) as streams:
            served.process.kill()
            ended = seconds_until(lambda: not any(map(is_alive, processes)), 60)
            logger.info("all processes ended after %.1f s", ended)
            outcomes = streams.wait(TOLD_LIMIT_S)
            assert all(is_told(last) or is_finished(last) for last in outcomes), outcomes
        left = list(FOLDER.glob(f"tritonlive_{launcher}_*"))
        assert sum(path.stat().st_size for path in left if path.is_file()) == 0
        next_start = SharedMemory(1)
        next_start.reserve()
        next_start.release()
        assert list(FOLDER.glob(f"tritonlive_{launcher}_*")) == []
    finally:
        served.close()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
