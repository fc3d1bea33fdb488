"""bench/gpu.sh, which nobody can run without a GPU, at least names options that exist."""

import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.front_ends.__main__ import app
from bench.front_ends.stream_load import Generator

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"


def commands(*arguments: str) -> list[list[str]]:
    done = subprocess.run(["bash", SCRIPT, "--dry-run", *arguments], capture_output=True, text=True, check=True)
    return [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path) -> None:
    found = commands(str(tmp_path / "out"))
    modules = [command[2] for command in found if command[1] == "-m"]
    serving = ["bench.random_checkpoint", "bench.front_ends"]
    assert modules == [*serving, *serving, "bench.gpu_push"]
    assert not (tmp_path / "out").exists()


def test_the_options_of_the_comparison_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Asked:
        def __init__(self, generator: Generator, *_: object) -> None:
            asked.append(str(generator.tokenizer))
            raise SystemExit(7)

    monkeypatch.setattr("bench.front_ends.__main__.Comparison", Asked)
    monkeypatch.setattr("bench.front_ends.__main__.fetch_binary", lambda: Path("vllm-rs"))
    comparisons = [command[3:] for command in commands() if command[2] == "bench.front_ends"]
    for options in comparisons:
        assert CliRunner().invoke(app, options).exit_code == 7
    assert asked == ["bench/results/gpu/model-0.6b", "bench/results/gpu/model-7b"]


def test_a_wrong_option_is_refused() -> None:
    done = subprocess.run(["bash", SCRIPT, "--wrong"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bench/gpu.sh [--dry-run] [FOLDER]" in done.stderr
