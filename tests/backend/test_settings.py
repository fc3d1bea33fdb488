"""tritonlive/backend/settings.py: vLLM's arguments from model.json and the environment."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]


def test_json_becomes_a_command_line(load: Load) -> None:
    argv = load("settings").to_argv(
        {
            "model": "m",
            "max_model_len": 2048,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "seed": None,
            "served_model_name": ["a", "b"],
            "weight_transfer_config": {"backend": "gloo"},
        }
    )
    assert argv == [
        *("--model", "m", "--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--served-model-name", "a", "b", "--weight-transfer-config", '{"backend": "gloo"}'),
    ]


def test_the_environment_comes_last(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.json").write_text('{"model": "a"}')
    monkeypatch.setenv("TRITONLIVE_ENGINE_ARGS", "--model 'b c'")
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", "secret")
    settings = load("settings").Settings.load(tmp_path)
    assert settings.engine_argv == ["--model", "a", "--model", "b c"]
    assert settings.control_key == "secret"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_broken_model_json_is_named(load: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        load("settings").Settings.load(tmp_path)


def test_vllm_understands_the_command_line(load: Load, tiny_model_dir: Path) -> None:
    argv = ["--model", "other", "--model", str(tiny_model_dir), "--enforce-eager", "--tool-call-parser", "hermes"]
    arguments = load("engine").parse_arguments(argv)
    assert arguments.model == str(tiny_model_dir)
    assert arguments.enforce_eager is True


def test_an_unknown_argument_is_an_error_that_names_it(load: Load) -> None:
    with pytest.raises(ValueError, match="--no-such-argument"):
        load("engine").parse_arguments(["--no-such-argument"])


def test_weights_can_be_pushed_without_asking_for_it(load: Load, tiny_model_dir: Path) -> None:
    argv = ["--model", str(tiny_model_dir)]
    engine = load("engine")
    assert engine.with_weight_transfer(argv)[2:] == ["--weight-transfer-config", '{"backend": "gloo"}']
    chosen = [*argv, "--weight-transfer-config", '{"backend": "nccl"}']
    assert engine.with_weight_transfer(chosen) == chosen
