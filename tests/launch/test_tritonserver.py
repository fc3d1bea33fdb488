import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tritonlive.launch import LaunchError, StackConfig, tritonserver


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return StackConfig(model="some/repo", cache_dir=tmp_path, triton_http_port=1, triton_grpc_port=2)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(tritonserver, "INSTALLED", tmp_path / "not-installed")


def test_the_named_one_wins(tmp_path: Path) -> None:
    binary = executable(tmp_path / "mine")
    assert tritonserver.find(binary, tmp_path).binary == binary


def test_a_named_one_that_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"--tritonserver .*not an executable file"):
        tritonserver.find(tmp_path, tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_path_comes_before_opt_before_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "embedded" in tritonserver.find(None, tmp_path).description
    installed = executable(tmp_path / "opt" / "tritonserver")
    monkeypatch.setattr(tritonserver, "INSTALLED", installed)
    assert tritonserver.find(None, tmp_path).binary == installed
    on_path = executable(tmp_path / "bin" / "tritonserver")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert tritonserver.find(None, tmp_path).binary == on_path


@pytest.mark.usefixtures("nowhere")
def test_the_embedded_one_gets_a_backend_folder_with_a_runnable_stub(tmp_path: Path) -> None:
    server = tritonserver.find(None, tmp_path)
    assert server.backend_directory is not None
    python = server.backend_directory / "python"
    assert (python / "libtriton_python.so").is_file()
    assert (python / "triton_python_backend_stub").stat().st_mode & 0o111
    assert tritonserver.find(None, tmp_path) == server


def test_environment_and_command(config: StackConfig, tmp_path: Path) -> None:
    server = tritonserver.TritonServer(tmp_path / "ts", library_path=(tmp_path / "lib",))
    config = replace(config, served_model_name="a b", extra_args=("--max-model-len", "7"), control_key="secret")
    env = server.environment(config, {"PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "5"})
    assert shlex.split(env["TRITONLIVE_ENGINE_ARGS"]) == [
        *("--model", "some/repo", "--served-model-name", "a b", "--max-model-len", "7")
    ]
    assert env["PATH"] == f"{Path(sys.prefix) / 'bin'}:/bin"
    assert env["LD_LIBRARY_PATH"] == str(tmp_path / "lib")
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "5"
    assert "HF_HUB_OFFLINE" not in env
    assert "secret" not in shlex.join(server.command(config))


def test_keys_travel_in_the_environment(config: StackConfig, tmp_path: Path) -> None:
    server = tritonserver.TritonServer(tmp_path / "ts")
    config = replace(config, control_key="a-control-key", api_key="one-key,another-key")
    env = server.environment(config, {})
    assert (env["TRITONLIVE_CONTROL_KEY"], env["TRITONLIVE_API_KEY"]) == ("a-control-key", "one-key,another-key")
    assert "-key" not in shlex.join(server.command(config))


@pytest.mark.row(37)
def test_administration_is_closed_with_another_value_at_each_start(config: StackConfig, tmp_path: Path) -> None:
    server = tritonserver.TritonServer(tmp_path / "ts")
    rules = {option for option in (*server.command(config), *server.command(config)) if "-restricted-" in option}
    assert len(rules) == 4
    for rule in rules:
        groups, _, header = rule.partition("=")[2].partition(":")
        assert groups.split(",") == ["shared-memory", "model-repository", "logging", "trace"]
        assert "\n" in header.partition("=")[2], "a value with a line break cannot be sent"


@pytest.mark.row(38)
def test_the_http_port_stays_on_this_machine_or_away(config: StackConfig, tmp_path: Path) -> None:
    server = tritonserver.TritonServer(tmp_path / "ts")
    command = server.command(replace(config, triton_host="0.0.0.0"))
    assert {"--http-address=127.0.0.1", "--grpc-address=0.0.0.0", "--metrics-address=0.0.0.0"} <= set(command)
    command = server.command(replace(config, triton_http=False))
    assert "--allow-http=false" in command
    assert not any(option.startswith(("--http-address", "--http-port")) for option in command)


def test_a_local_model_is_served_without_the_hub_and_env_wins(config: StackConfig, tmp_path: Path) -> None:
    config = replace(config, model=str(tmp_path), kv_cache_space_gib=0.5, env={"VLLM_LOGGING_LEVEL": "DEBUG"})
    env = tritonserver.TritonServer(tmp_path).environment(config, {"VLLM_CPU_KVCACHE_SPACE": "5"})
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "0.5"
    assert env["VLLM_LOGGING_LEVEL"] == "DEBUG"
