"""tritonlive/backend/settings.py: vLLM's arguments from model.json and the environment."""

from pathlib import Path

import pytest

from tritonlive.backend.arguments import parse_arguments, with_weight_transfer
from tritonlive.backend.settings import Settings, to_argv


def test_json_becomes_a_command_line() -> None:
    argv = to_argv(
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


def test_the_environment_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.json").write_text('{"model": "a"}')
    monkeypatch.setenv("TRITONLIVE_ENGINE_ARGS", "--model 'b c'")
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", "secret")
    settings = Settings.load(tmp_path)
    assert settings.engine_argv == ["--model", "a", "--model", "b c"]
    assert settings.control_key == "secret"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_broken_model_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        Settings.load(tmp_path)


def test_vllm_understands_the_command_line(tiny_model_dir: Path) -> None:
    argv = ["--model", "other", "--model", str(tiny_model_dir), "--enforce-eager", "--tool-call-parser", "hermes"]
    arguments = parse_arguments(argv)
    assert arguments.model == str(tiny_model_dir)
    assert arguments.enforce_eager is True


def test_an_unknown_argument_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="--no-such-argument"):
        parse_arguments(["--no-such-argument"])


def test_weights_can_be_pushed_without_asking_for_it(tiny_model_dir: Path) -> None:
    argv = ["--model", str(tiny_model_dir)]
    assert with_weight_transfer(argv)[2:] == ["--weight-transfer-config", '{"backend": "gloo"}']
    chosen = [*argv, "--weight-transfer-config", '{"backend": "nccl"}']
    assert with_weight_transfer(chosen) == chosen
