"""Shared by every test: the tiny model, and one running stack for the whole session."""

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

from tests import triton_stand_in
from tritonlive.launch import Stack, StackConfig
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.default_model import default_model
from tritonlive.launch.tiny_model import tiny_model

STACK_READY_TIMEOUT_S = 300
LEGACY_TRL_VERSION = "1.10.0"

# Before any test is collected: the model's modules import it, and only Triton's own process has the real one.
triton_stand_in.install()


def pytest_configure() -> None:
    """Whatever tests start can be interrupted, also where a shell that runs them in its background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the stack is marked so."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the processes of its stack said last."""
    report = yield
    report.user_properties += [("row", number) for mark in item.iter_markers("row") for number in mark.args]
    values: dict[str, Any] = getattr(item, "funcargs", {})
    for stack in (value for value in values.values() if report.failed and isinstance(value, Stack)):
        for process in (stack.frontend, stack.triton):
            report.sections.append((f"log of {process.name}", process.log_tail(60)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each row of the fault list that was run."""
    rows: dict[int, list[pytest.TestReport]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if not isinstance(report, pytest.TestReport):
                continue  # a module that could not be collected
            for name, number in report.user_properties if report.when == "call" or report.failed else ():
                if name == "row":
                    rows.setdefault(number, []).append(report)
    if rows:
        terminalreporter.section("fault list")
    for number, reports in sorted(rows.items()):
        bad = [report for report in reports if report.failed]
        tests = ", ".join(
            sorted({report.nodeid.rpartition("::")[2].removeprefix("test_").partition("[")[0] for report in reports})
        )
        verdict = f"{len(bad)} of {len(reports)} FAILED" if bad else f"ok ({len(reports)})"
        terminalreporter.write_line(f"row {number:2}  {verdict:<18} {tests.replace('_', ' ')}")


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The user's cache: models are built once per machine, not once per run."""
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
    """TRL 1.10.0 as its wheel has it, beside the installed one; fetched once per machine."""
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
    """How the shared stack is set up; take it with dataclasses.replace for one of your own."""
    return StackConfig(
        model=str(tiny_model_dir),
        served_model_name="tiny",
        extra_args=(
            # Many processors emulate bfloat16, six times as slowly; a test whose point it is asks for it.
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ),
        api_key="test-inference-key",
        control_key="test-control-key",
        kv_cache_space_gib=1,
        log_dir=Path(os.environ.get("TRITONLIVE_TEST_LOG_DIR") or tmp_path_factory.mktemp("stack-logs")),
    )


@pytest.fixture(scope="session")
def stack(stack_config: StackConfig) -> Iterator[Stack]:
    """The running stack with the tiny model: api_key and control_key are in its attributes."""
    with Stack(stack_config) as running:
        running.wait_ready(STACK_READY_TIMEOUT_S)
        yield running
