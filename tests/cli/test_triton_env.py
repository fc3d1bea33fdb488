"""tritonlive/cli/triton_env.py."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tritonlive.cli.app import app
from tritonlive.launch import dtype, model_choice, processor

runner = CliRunner(env={"TRITONLIVE_CONTROL_KEY": None, "TRITONLIVE_API_KEY": None})


def test_triton_env_prints_what_a_shell_can_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = runner.invoke(
        app,
        ["triton-env", "--model", str(tmp_path), "--dtype=half", "--enforce-eager", "--tritonserver", sys.executable],
        env={"TRITONLIVE_CONTROL_KEY": "top-secret"},
    )
    assert result.exit_code == 0
    assert "top-secret" not in result.output
    shell = subprocess.run(
        ["bash", "-c", f"{result.output.rpartition(os.linesep + shlex.quote(sys.executable))[0]}\nenv"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"TRITONLIVE_ENGINE_ARGS=--model {tmp_path} --dtype=half --enforce-eager" in shell.stdout


@pytest.mark.parametrize(
    ("flags", "arguments", "engine_args"),
    [
        ("avx2", [], "--dtype float32"),
        ("avx2", ["--dtype=bfloat16"], "--dtype=bfloat16"),
        ("avx2 avx512f", [], ""),
    ],
)
def test_triton_env_chooses_the_dtype_that_serve_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, arguments: list[str], engine_args: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "computes_on_cpu", lambda: True)
    options = ["triton-env", "--model", str(tmp_path), "--tritonserver", sys.executable]
    result = runner.invoke(app, [*options, *arguments])
    assert f"TRITONLIVE_ENGINE_ARGS='{f'--model {tmp_path} {engine_args}'.strip()}'\n" in result.stdout
    assert (result.stderr == f"dtype {dtype.NOTE}\n") == (engine_args == "--dtype float32")


def test_the_default_model_is_served_in_float32_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_choice, "default_model", lambda cache_dir: cache_dir / "smollm2")
    monkeypatch.setattr(processor, "computes_on_cpu", lambda: False)
    options = ["triton-env", "--cache-dir", str(tmp_path), "--tritonserver", sys.executable]
    assert "--dtype float32" in runner.invoke(app, options).stdout
    assert "--dtype float32" not in runner.invoke(app, [*options, "--dtype", "bfloat16"]).stdout


def test_a_written_repository_is_served_with_its_own_engine_arguments(tmp_path: Path) -> None:
    options = ["triton-env", "--model-repository", str(tmp_path), "--tritonserver", sys.executable]
    result = runner.invoke(app, options)
    assert result.exit_code == 0, result.output
    assert f"--model-repository {tmp_path}" in result.stdout
    assert "TRITONLIVE_ENGINE_ARGS" not in result.stdout
    assert f"export PATH={Path(sys.prefix) / 'bin'}" in result.stdout


@pytest.mark.parametrize("further", [["--model", "org/name"], ["--served-model-name", "a"], ["--enforce-eager"]])
def test_engine_arguments_do_not_go_with_a_written_repository(tmp_path: Path, further: list[str]) -> None:
    result = runner.invoke(app, ["triton-env", "--model-repository", str(tmp_path), *further])
    assert result.exit_code == 2
    assert "leave out --model" in " ".join(result.output.replace("│", " ").split())
