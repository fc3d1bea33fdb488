"""Shared by every test: marks by path, the guard against stray servers, the tiny model, and one running stack."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import fault_table, paths, process_guard, triton_stand_in
from tests.process_guard import ProcessGuard
from tritonlive.launch import Stack, StackConfig
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.default_model import default_model
from tritonlive.launch.tiny_model import tiny_model

STACK_READY_TIMEOUT_S = 240
LEGACY_TRL_VERSION = "1.10.0"
API_KEY = "test-inference-key"
GUARD = pytest.StashKey[ProcessGuard]()

# Before any test is collected: the model's modules import it, and only Triton's own process has the real one.
triton_stand_in.install()


def pytest_configure() -> None:
    """Let Ctrl-C interrupt child processes, even if a shell runs the tests in its background and ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# First: -m looks at the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test as its path says (tests/paths.py)."""
    for item in items:
        paths.add_marks(item)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make `--dist loadgroup` group tests by tests/paths.py."""
    if config.getoption("dist") != "loadgroup":
        return None
    from tests.group_scheduling import GroupScheduling

    return GroupScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last log lines of a failed test's stack."""
    report = yield
    fault_table.note_rows(item, report)
    values: dict[str, Any] = getattr(item, "funcargs", {})
    for stack in (value for value in values.values() if report.failed and isinstance(value, Stack)):
        for process in (stack.frontend, stack.triton):
            report.sections.append((f"log of {process.name}", process.log_tail(60)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the fault list."""
    fault_table.write_table(terminalreporter)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Watch for Triton servers and engines until the session ends."""
    session.stash[GUARD] = guard = ProcessGuard()
    os.environ[process_guard.VARIABLE] = guard.value
    guard.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.stash[GUARD].close()


# First: fixtures of a module or a session, which start stacks, are set up after this.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that uses the stack without the mark. Servers that start from now on belong to this test."""
    may_start = item.get_closest_marker("stack") is not None
    if not may_start and "stack" in getattr(item, "fixturenames", ()):
        pytest.fail("a test that uses the stack belongs below a path that tests/paths.py marks so")
    item.session.stash[GUARD].begin(item.nodeid, may_start=may_start)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Fail a test without the mark `stack` if a Triton server or an engine has started."""
    guard = item.session.stash[GUARD]
    if nextitem is None:
        guard.look()  # no later test would report what the last one started
    _fail_for(guard)


def _fail_for(guard: ProcessGuard) -> None:
    if guard.offences:
        offences, guard.offences[:] = "; ".join(guard.offences), []
        pytest.fail(f"without the mark `stack` (tests/paths.py): {offences}", pytrace=False)


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Cache of this user: models are built once per machine, not once per run."""
    return default_cache_dir()


@pytest.fixture(scope="session")
def tiny_model_dir(cache_dir: Path) -> Path:
    """A random 2-layer Llama with SmolLM2's tokenizer."""
    return tiny_model(cache_dir)


@pytest.fixture(scope="session")
def smollm2_dir(cache_dir: Path) -> Path:
    """SmolLM2-135M-Instruct, bfloat16."""
    return default_model(cache_dir)


@pytest.fixture(scope="session")
def legacy_trl_dir(cache_dir: Path) -> Path:
    """Folder with TRL 1.10.0, beside the installed one; fetched once per machine."""
    target = cache_dir / f"trl-{LEGACY_TRL_VERSION}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{target.name}-") as temporary:
                incoming = Path(temporary) / "packages"
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(incoming)]
                subprocess.run([*pip, f"trl=={LEGACY_TRL_VERSION}"], check=True)
                incoming.rename(target)
    return target


@pytest.fixture(scope="session")
def stack_config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StackConfig:
    """Configuration of the shared stack; dataclasses.replace makes one for another stack."""
    return StackConfig(
        model=str(tiny_model_dir),
        served_model_name="tiny",
        extra_args=(
            # Many processors emulate bfloat16, six times as slowly. Tests of bfloat16 request it.
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ),
        api_key=API_KEY,
        control_key="test-control-key",
        kv_cache_space_gib=1,
        log_dir=stack_logs(tmp_path_factory),
    )


def stack_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the shared stack's logs, one per process of pytest-xdist. TRITONLIVE_TEST_LOG_DIR keeps them."""
    if kept := os.environ.get("TRITONLIVE_TEST_LOG_DIR"):
        return Path(kept) / os.environ.get("PYTEST_XDIST_WORKER", "")
    return tmp_path_factory.mktemp("stack-logs")


@pytest.fixture(scope="session")
def stack(stack_config: StackConfig) -> Iterator[Stack]:
    """The running stack with the tiny model; its keys are the attributes api_key and control_key."""
    with Stack(stack_config) as running:
        running.wait_ready(STACK_READY_TIMEOUT_S)
        yield running
