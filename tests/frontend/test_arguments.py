"""openai_frontend/arguments.py and option_table.py: what vLLM says of a command line, before Triton is ready."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openai_frontend.arguments import ArgumentsError, check
from openai_frontend.option_table import option_table
from openai_frontend.server import check_arguments_elsewhere
from tritonlive.backend.arguments import parse_arguments
from tritonlive.launch.vllm_options import TABLE
from tritonlive.wire.environment import ENGINE_ARGS_VARIABLE


@pytest.fixture
def engine(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engine's command line; the model has 2048 positions."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return ["--model", str(tiny_model_dir), "--dtype", "float32", "--enforce-eager"]


def test_the_launchers_table_is_that_of_the_installed_vllm() -> None:
    assert json.loads(TABLE.read_text()) == option_table(), (
        "write it again: python -m openai_frontend.option_table >tritonlive/launch/vllm_options.json"
    )


@pytest.mark.row(63)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--max-modle-len 5", r"^unrecognized arguments: --max-modle-len; did you mean --max-model-len\?$"),
        ("--max-model-len 5x", r"^argument --max-model-len: invalid .* value: '5x'$"),
        ("--max-model-len 99999", r"^User-specified max_model_len \(99999\) is greater than the derived max_model_len"),
        ("--tool-call-parser hermess", r"^--tool-call-parser hermess: no such name; did you mean hermes\? Valid: "),
        ("--reasoning-parser qwen4", r"^--reasoning-parser qwen4: no such name; did you mean qwen3\? Valid: "),
        ("--chat-template /no.jinja", r"appears path-like, but doesn't exist"),
        ("--quantization foo", r"^Unknown quantization method: foo"),
        ("--tensor-parallel-size 3", r"heads \(2\) must be divisible by tensor parallel size \(3\)\.$"),
        ("--config /no.yaml", r"No such file or directory: '/no.yaml'$"),
        ("--enable-auto-tool-choice", r"--enable-auto-tool-choice requires --tool-call-parser$"),
    ],
)
def test_a_mistake_is_said_without_an_engine(engine: list[str], arguments: str, said: str) -> None:
    with pytest.raises(ArgumentsError, match=said) as raised:
        check(engine, arguments.split())
    assert "[type=" not in str(raised.value)


def test_right_arguments_pass_with_and_without_the_engines(engine: list[str]) -> None:
    right = ["--tool-call-parser", "hermes", "--enable-auto-tool-choice"]
    check(engine, right)
    check([], right)


def test_a_model_without_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArgumentsError, match=r"ensure the presence of a 'config\.json'"):
        check(["--model", str(tmp_path)], [])


def test_the_model_in_triton_says_it_too() -> None:
    with pytest.raises(ValueError, match=r"unrecognized arguments: --max-modle-len; did you mean --max-model-len\?$"):
        parse_arguments(["--model", "org/name", "--max-modle-len", "5"])


def test_several_workers_check_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_ARGS_VARIABLE, raising=False)
    said = check_arguments_elsewhere(["--tool-call-parser", "hermess"])
    assert said is not None
    assert said.startswith("--tool-call-parser hermess: no such name; did you mean hermes?")


def test_a_front_end_ends_without_waiting_for_triton(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        command = [
            *(sys.executable, "-P", "-m", "openai_frontend", "--triton-url", f"127.0.0.1:{silent.getsockname()[1]}"),
            *(
                "--port",
                str(_free_port()),
                "--tool-parser-plugin",
                "x",
                "--tool-call-parser",
                "mine",
            ),
        ]
        ended = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ended.returncode == 2
    assert "openai_frontend: --tool-call-parser mine: no such name" in ended.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
