"""tritonlive/cli/serve.py and foreground.py."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from typer.testing import CliRunner

from tritonlive.cli import foreground
from tritonlive.cli.app import app
from tritonlive.launch import LaunchError, Stack, StackConfig, compiler, dtype, processor
from tritonlive.launch.display import ready_lines
from tritonlive.launch.ports import ReservedPorts, pick_free
from tritonlive.launch.ready import Ready

runner = CliRunner(env={"TRITONLIVE_CONTROL_KEY": None, "TRITONLIVE_API_KEY": None})
READY = Ready(model="served", weight_version="initial", first_token_s=0.1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[StackConfig]:
    """The configurations that `serve` would have run."""
    configs: list[StackConfig] = []
    run: Callable[..., int] = lambda config, timeout_s: configs.append(config) or 0  # noqa: E731
    monkeypatch.setattr(foreground, "run", run)
    return configs


def free_ports() -> list[str]:
    """Options for ports that a stack running on this machine does not use."""
    names = ("--port", "--triton-http-port", "--triton-grpc-port", "--triton-metrics-port")
    return [f"{name}={port}" for name, port in zip(names, pick_free("127.0.0.1", len(names)), strict=True)]


def serve(*arguments: str) -> Any:
    return runner.invoke(app, ["serve", *arguments])


def test_arguments_that_are_not_ours_go_to_vllm_in_order(seen: list[StackConfig]) -> None:
    arguments = "--max-model-len 2048 --port 9100 --enforce-eager --model org/name -tp 2 --tool-call-parser=hermes"
    assert serve(*arguments.split(), "--override-generation-config", '{"a": 1}').exit_code == 0
    (config,) = seen
    assert (config.model, config.port) == ("org/name", 9100)
    assert shlex.join(config.extra_args) == (
        "--max-model-len 2048 --enforce-eager -tp 2 --tool-call-parser=hermes --override-generation-config '{\"a\": 1}'"
    )


def test_defaults(seen: list[StackConfig]) -> None:
    serve()
    (config,) = seen
    ports = (config.port, config.triton_http_port, config.triton_grpc_port, config.triton_metrics_port)
    assert ports == (9000, 8000, 8001, 8002)
    assert (config.host, config.triton_host, config.workers) == ("127.0.0.1", "127.0.0.1", 1)


@pytest.mark.parametrize("options", [(), ("--no-fast-path",), ("--no-fast-path", "--ignore-unknown-fields")])
def test_options_of_the_front_end_go_to_it_alone(seen: list[StackConfig], options: tuple[str, ...]) -> None:
    serve(*options)
    assert seen[0].frontend_args == options
    assert seen[0].extra_args == ()


def test_keys_come_from_the_environment(seen: list[StackConfig]) -> None:
    runner.invoke(app, ["serve"], env={"TRITONLIVE_CONTROL_KEY": "c", "TRITONLIVE_API_KEY": "a,b"})
    assert (seen[0].control_key, seen[0].api_key) == ("c", "a,b")


def test_a_model_without_its_option_is_explained(seen: list[StackConfig]) -> None:
    result = serve("org/name")
    assert result.exit_code == 2
    assert "--model org/name" in " ".join(result.output.replace("│", " ").split())
    assert seen == []


def test_a_model_directory_that_is_not_there() -> None:
    result = serve("--model", "./nothing-here", *free_ports())
    assert result.exit_code == 1
    assert "./nothing-here: no such directory" in result.output


def test_help_shows_examples() -> None:
    output = serve("--help").output
    assert "tritonlive serve --model ./my-checkpoint" in output
    assert 'make serve ARGS="--port 9100' in output


@pytest.mark.row(63)
def test_an_option_that_vllm_does_not_have_is_said_before_anything_starts(seen: list[StackConfig]) -> None:
    result = serve("--max-modle-len", "5")
    assert result.exit_code == 2
    assert result.output == "tritonlive: unrecognized arguments: --max-modle-len; did you mean --max-model-len?\n"
    result = serve("--triton-htp-port", "5")
    assert "did you mean --triton-http-port?" in result.output
    assert seen == []


@pytest.mark.row(63)
def test_a_model_directory_without_configuration(tmp_path: Path) -> None:
    result = serve("--model", str(tmp_path), "--cache-dir", str(tmp_path), *free_ports())
    assert result.exit_code == 1
    assert f"--model {tmp_path}: it has no config.json" in result.output


@pytest.mark.parametrize("is_made_up", [True, False])
def test_the_ready_block_shows_only_a_key_that_was_made_up(tmp_path: Path, is_made_up: bool) -> None:
    key = None if is_made_up else "given-control"
    stack = Stack(StackConfig(model=str(tmp_path), control_key=key, api_key="given-api", cache_dir=tmp_path))
    block = "\n".join(ready_lines(stack, READY, is_control_key_made_up=is_made_up))
    assert "given-api" not in block
    assert (stack.control_key in block) == is_made_up
    assert "Bearer $TRITONLIVE_API_KEY" in block
    assert f"tritonlive push --to {stack.frontend_url} --checkpoint {tmp_path}" in block
    assert f"{stack.frontend_url}/v1/chat/completions" in block
    assert "weight version initial" in block
    assert "Dtype" not in block


def test_the_ready_block_says_which_dtype_the_launcher_chose(tmp_path: Path) -> None:
    stack = Stack(StackConfig(model=str(tmp_path), cache_dir=tmp_path))
    block = ready_lines(stack, READY, is_control_key_made_up=True, dtype_note=dtype.NOTE)
    assert "Dtype           float32 (this processor emulates bfloat16; --dtype bfloat16 keeps it)" in block


class StartedStack(Stack):
    """Ready at once, and ended soon after; no process is started."""

    def start(self) -> None:
        """Nothing to start."""

    def wait_ready(self, timeout_s: float = 900.0) -> Ready:
        return READY

    def check(self) -> None:
        raise LaunchError(f"ended: {shlex.join(self.config.extra_args)}")


@pytest.mark.parametrize(("flags", "is_chosen"), [("avx2", True), ("avx2 avx512f", False)])
def test_serve_chooses_float32_where_bfloat16_is_emulated_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, is_chosen: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "computes_on_cpu", lambda: True)
    monkeypatch.setattr(compiler, "missing_packages", list)
    monkeypatch.setattr(foreground, "Stack", StartedStack)
    monkeypatch.setattr(foreground, "stop_on_signals", foreground.StopEvent)
    arguments = ("--model", str(tmp_path), "--max-num-seqs", "8", "--cache-dir", str(tmp_path), "--no-restart")
    result = serve(*arguments, *free_ports())
    assert f"ended: {'--dtype float32 ' if is_chosen else ''}--max-num-seqs 8" in result.output
    assert (f"Dtype           {dtype.NOTE}\n" in result.output) == is_chosen


# A tritonserver that runs, but whose model is never ready. SIGTERM ends it.
TRITON = """#!{python}
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("session", subprocess.Popen(["sleep", "300"]).pid, flush=True)
{then}
"""


class Launcher:
    """`tritonlive serve` with a stand-in tritonserver and a stand-in front end."""

    def __init__(
        self,
        directory: Path,
        *,
        triton: str = "time.sleep(300)",
        frontend: str = "time.sleep(300)",
        ports: list[str] | None = None,
        logs: Path | None = None,
    ) -> None:
        binary = directory / "tritonserver"
        binary.write_text(TRITON.format(python=sys.executable, then=triton))
        binary.chmod(0o755)
        package = directory / "openai_frontend"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import sys, time\n{frontend}\n")
        self._log = directory / "tritonserver.log"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tritonlive", "serve", "--model", "org/name", "--tritonserver", str(binary)),
                *(ports or free_ports()),
                *("--cache-dir", str(directory), "--log-dir", str(logs or directory)),
            ],
            env=os.environ | {"PYTHONPATH": str(directory)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 60  # on a busy machine
        while not (self._log.exists() and "session" in self._log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def is_child_alive(self) -> bool:
        pid = int(self._log.read_text().split()[1])
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.row(66)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_starting_is_said_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with Launcher(tmp_path) as launcher:
        launcher.wait_until_up()
        assert launcher.is_child_alive()
        launcher.process.send_signal(number)
        _, shown = launcher.process.communicate(timeout=20)
    assert launcher.process.returncode == 128 + number
    assert f"tritonlive: stopped by {number.name} while starting\n" in shown
    assert not launcher.is_child_alive()


def test_a_second_signal_kills_what_does_not_stop(tmp_path: Path) -> None:
    with Launcher(tmp_path, triton="signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(300)") as launcher:
        launcher.wait_until_up()
        launcher.process.send_signal(signal.SIGINT)
        time.sleep(2)
        assert launcher.process.poll() is None
        launcher.process.send_signal(signal.SIGINT)
        assert launcher.process.wait(10) == 130
    assert not launcher.is_child_alive()


def test_when_tritonserver_dies_the_rest_is_stopped_and_the_reason_shown(tmp_path: Path) -> None:
    with Launcher(tmp_path, triton="time.sleep(1); sys.exit('no such device')") as launcher:
        _, shown = launcher.process.communicate(timeout=30)
    assert launcher.process.returncode == 1
    assert "tritonserver ended (exit status 1)" in shown
    assert "no such device" in shown
    assert not launcher.is_child_alive()


def test_when_the_front_end_dies_the_rest_is_stopped_and_the_reason_shown(tmp_path: Path) -> None:
    with Launcher(tmp_path, frontend="sys.exit('bad argument')") as launcher:
        _, shown = launcher.process.communicate(timeout=30)
    assert launcher.process.returncode == 1
    assert "front end ended (exit status 1)" in shown
    assert "bad argument" in shown


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        result = serve("--port", str(port), "--model", "org/name", "--log-dir", str(tmp_path / "logs"))
    assert result.exit_code == 1
    assert f"port {port} (front end) is already in use; choose another with --port" in result.output
    assert not (tmp_path / "logs").exists()


@pytest.mark.row(65)
def test_a_second_serve_on_the_same_ports_is_told_at_once_who_is_starting_there(tmp_path: Path) -> None:
    ports = free_ports()
    with Launcher(tmp_path, ports=ports) as first:
        first.wait_until_up()  # its servers run and have bound nothing yet
        second = serve("--model", "org/name", "--log-dir", str(tmp_path / "logs"), *ports)
        assert second.exit_code == 1
        number = ports[0].partition("=")[2]
        said = " ".join(second.output.split())
        assert f"port {number} (front end) is taken by tritonlive, process {first.process.pid} (since " in said
        assert "still starting; choose another with --port" in said
        assert not (tmp_path / "logs").exists()
        first.process.kill()
        first.process.wait(10)
        assert ReservedPorts(StackConfig(model="m", port=int(number))).release() is None


@pytest.mark.row(65)
def test_a_second_serve_with_the_same_logs_leaves_them_alone(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with Launcher(folders[0]) as first:
        first.wait_until_up()
        with Launcher(folders[1], logs=folders[0]) as second:
            _, shown = second.process.communicate(timeout=60)
        assert second.process.returncode == 1
        assert f"the logs in {folders[0]} are written by tritonlive, process {first.process.pid} (since " in shown
        assert "choose others with --log-dir" in shown
        assert first.process.poll() is None
        assert "session" in (folders[0] / "tritonserver.log").read_text()


@pytest.mark.row(65)
def test_a_front_end_on_the_port_of_a_starting_stack_is_refused(tmp_path: Path) -> None:
    ports = free_ports()
    with Launcher(tmp_path, ports=ports) as first:
        first.wait_until_up()
        result = runner.invoke(app, ["frontend", ports[0]])
        assert result.exit_code == 1
        assert f"is taken by tritonlive, process {first.process.pid} (since " in " ".join(result.output.split())


def test_of_two_serves_that_start_together_one_goes_on(tmp_path: Path) -> None:
    ports = free_ports()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with Launcher(folders[0], ports=ports) as one, Launcher(folders[1], ports=ports) as two:
        deadline = time.monotonic() + 30
        while (one.process.poll() is None) == (two.process.poll() is None):
            assert time.monotonic() < deadline, "neither or both have ended"
            time.sleep(0.05)
        loser, winner = (one, two) if one.process.poll() is not None else (two, one)
        _, shown = loser.process.communicate(timeout=10)
        assert f"is taken by tritonlive, process {winner.process.pid} (since " in shown
        winner.wait_until_up()
