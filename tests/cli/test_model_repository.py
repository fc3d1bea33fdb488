"""tritonlive/cli/model_repository.py."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tritonlive.cli.app import app


def write(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["model-repository", *arguments])


def arguments_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "1" / "model.json").read_text())


def test_several_models_lie_side_by_side(tmp_path: Path) -> None:
    result = write(str(tmp_path / "repository"), "--model", "org/one", "--max-model-len", "4096", "--enforce-eager")
    assert result.exit_code == 0, result.output
    assert f'eval "$(tritonlive triton-env --model-repository {tmp_path / "repository"})"' in result.output
    assert write(str(tmp_path / "repository"), "--model", str(tmp_path), "--name", "judge").exit_code == 0
    first, second = (tmp_path / "repository" / name for name in ("llm", "judge"))
    assert arguments_of(first) == {"model": "org/one", "max_model_len": 4096, "enforce_eager": True}
    assert arguments_of(second) == {"model": str(tmp_path)}
    assert '\nname: "judge"\n' in (second / "config.pbtxt").read_text()
    shared = {"vllm_model", "llm_unary", "judge_vllm_model", "judge_unary"}
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {"llm", "judge", *shared}


def test_the_name_for_clients_of_vllm_backend_can_be_chosen(tmp_path: Path) -> None:
    assert write(str(tmp_path), "--model", "org/one", "--vllm-name", "vllm_opt").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"llm", "vllm_opt", "llm_unary"}


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert write("repository", "--model", "checkpoint").exit_code == 0
    assert arguments_of(tmp_path / "repository" / "llm") == {"model": str(tmp_path / "checkpoint")}


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    assert write(str(tmp_path), "--model", "org/one").exit_code == 0
    result = write(str(tmp_path), "--model", "org/two")
    assert result.exit_code == 1
    assert "exists already: choose another --name" in result.output
    assert arguments_of(tmp_path / "llm") == {"model": "org/one"}


def test_a_missing_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = write(str(tmp_path / "repository"), "--model", "./nothing-here")
    assert result.exit_code == 1
    assert "./nothing-here: no such directory" in result.output
    assert not (tmp_path / "repository").exists()


def test_the_help_says_how_tritonserver_finds_the_python() -> None:
    shown = " ".join(write("--help").output.split())
    assert "tritonlive triton-env --model-repository DIR" in shown
    assert "tritonserver --model-repository" in shown


def test_an_option_that_vllm_does_not_have_writes_nothing(tmp_path: Path) -> None:
    result = write(str(tmp_path / "repository"), "--model", "org/one", "--max-modle-len", "4096")
    assert result.exit_code == 2
    assert "unrecognized arguments: --max-modle-len; did you mean --max-model-len?" in result.output
    assert not (tmp_path / "repository").exists()
