"""tritonlive/backend/settings.py: vLLM's arguments from model.json and the environment."""

from pathlib import Path

import pytest

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
    assert settings.model_version == tmp_path.name
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_broken_model_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        Settings.load(tmp_path)
