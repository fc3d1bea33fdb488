"""tritonlive/launch/model_repository.py, and where the launcher finds the model repository."""

from pathlib import Path

import pytest

from tritonlive.backend.settings import Settings, to_argv
from tritonlive.launch import LaunchError, StackConfig
from tritonlive.launch.model_repository import ModelNames, engine_arguments, write_models


def test_a_checkout_has_it_at_the_top_level() -> None:
    assert StackConfig.model_repository == Path(__file__).parents[2] / "model_repository"


def test_a_written_model_has_everything_but_caches(tmp_path: Path) -> None:
    folder = write_models(tmp_path, ModelNames.of("judge"), {"model": "org/name"})
    assert folder == tmp_path / "judge"
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *("judge/config.pbtxt", "judge/1/model.py", "judge/1/model.json"),
        *("judge_vllm_model/config.pbtxt", "judge_vllm_model/1/model.py"),
        *("judge_unary/config.pbtxt", "judge_unary/1/model.py"),
    }
    for name in ("judge_vllm_model", "judge_unary"):
        config = (tmp_path / name / "config.pbtxt").read_text()
        assert f'\nname: "{name}"\n' in config
        assert 'key: "ENGINE_MODEL" value: { string_value: "judge" }' in config
    assert Settings.load(folder / "1").engine_argv == ["--model", "org/name"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LaunchError, match="--name"):
        write_models(tmp_path, ModelNames.of(name), {})


@pytest.mark.parametrize("name", ["a/b", "llm"])
def test_a_name_for_vllm_backends_clients_must_be_another_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(LaunchError, match="--vllm-name"):
        write_models(tmp_path, ModelNames.of("llm", name), {})
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_beside_a_model_that_exists(tmp_path: Path) -> None:
    (tmp_path / "vllm_model").mkdir()
    with pytest.raises(LaunchError, match="vllm_model exists already: choose another --vllm-name"):
        write_models(tmp_path, ModelNames(), {})
    assert not (tmp_path / "llm").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="file/llm cannot be written"):
        write_models(tmp_path / "file", ModelNames(), {})


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        ("--max-model-len 2048 --enforce-eager", {"max_model_len": 2048, "enforce_eager": True}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--served-model-name a b", {"served_model_name": ["a", "b"]}),
        ("--gpu-memory-utilization=0.4 --max-logprobs -1", {"gpu_memory_utilization": 0.4, "max_logprobs": -1}),
        ("--seed 1.50 --revision 007", {"seed": "1.50", "revision": "007"}),
        ('--weight-transfer-config {"backend":"gloo"}', {"weight_transfer_config": {"backend": "gloo"}}),
        ("--middleware [broken", {"middleware": "[broken"}),
        ("", {}),
    ],
)
def test_options_become_engine_arguments_and_come_back(argv: str, arguments: dict[str, object]) -> None:
    assert engine_arguments(argv.split()) == arguments
    assert engine_arguments(to_argv(arguments)) == arguments


@pytest.mark.parametrize(("argv", "message"), [("-tp 2", "-tp: .*long option"), ("word", "--model word")])
def test_what_has_no_place_in_model_json_is_named(argv: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        engine_arguments(argv.split())
