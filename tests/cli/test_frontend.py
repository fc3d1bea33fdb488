"""tritonlive/cli/frontend.py: `tritonlive frontend` and `python -m openai_frontend`."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openai_frontend import server
from openai_frontend.guards.limits import KIB, MIB, Limits
from openai_frontend.rust.port import RustAddress
from tritonlive.cli.app import app
from tritonlive.cli.frontend import app as frontend_app
from tritonlive.cli.limit_options import frontend_arguments
from tritonlive.launch import ports

Call = tuple[list[str], list[str], dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The command that would be served."""
    calls: list[Call] = []

    def serve(urls: list[str], argv: list[str], **options: Any) -> int:
        calls.append((urls, argv, options))
        return 0

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(ports, "reserve_front_end", lambda *address: None)  # another test, or a server, may hold it
    return calls


@pytest.mark.parametrize(
    ("argv", "urls"),
    [
        ([], ["127.0.0.1:8001"]),
        (["--triton-url", "a:1"], ["a:1"]),
        (["--triton-url", "grpc://a:1", "--triton-url", "b:2"], ["a:1", "b:2"]),
        (["--triton-url", "a:1, b:2", "--triton-url=a:1"], ["a:1", "b:2"]),
    ],
)
def test_the_urls_on_the_command_line(calls: list[Call], argv: list[str], urls: list[str]) -> None:
    assert CliRunner().invoke(app, ["frontend", *argv]).exit_code == 0
    assert calls[0][0] == urls


def test_arguments_that_are_not_ours_go_to_vllm_in_order(calls: list[Call]) -> None:
    argv = [
        "--dtype",
        "float32",
        "--port",
        "9100",
        "-tp",
        "2",
        "--tool-call-parser=hermes",
        "--drain",
        "3",
        "--enable-auto-tool-choice",
    ]
    assert CliRunner().invoke(frontend_app, argv).exit_code == 0
    ((_, vllm_argv, options),) = calls
    assert shlex.join(vllm_argv) == "--dtype float32 -tp 2 --tool-call-parser=hermes --enable-auto-tool-choice"
    assert options == {
        "host": "127.0.0.1",
        "port": 9100,
        "workers": 1,
        "wait_s": None,
        "use_fast_path": True,
        "limits": Limits(drain_s=3),
        "ignore_unknown_fields": False,
        "rust": None,
    }


def test_a_rust_port_is_served_with_the_given_binary(calls: list[Call]) -> None:
    argv = ["--rust-port", "9101", "--rust-binary", sys.executable, "--host", "127.0.0.2"]
    assert CliRunner().invoke(frontend_app, argv).exit_code == 0
    ((_, vllm_argv, options),) = calls
    assert (options["rust"], vllm_argv) == (RustAddress("127.0.0.2", 9101, Path(sys.executable)), [])


def test_the_limits_of_serve_reach_the_front_end(calls: list[Call]) -> None:
    chosen = Limits(2 * MIB, 4 * KIB, 1.5, 2, 3, 4, 5, 6, 7)
    assert CliRunner().invoke(frontend_app, list(frontend_arguments(chosen))).exit_code == 0
    ((_, vllm_argv, options),) = calls
    assert (options["limits"], vllm_argv) == (chosen, [])
    assert Limits.parse(chosen.to_json()) == chosen


def test_a_stray_word_is_refused(calls: list[Call]) -> None:
    result = CliRunner().invoke(app, ["frontend", "some/model"])
    assert result.exit_code == 2
    assert calls == []


def test_the_module_is_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "openai_frontend", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Usage: python -m openai_frontend" in shown
    assert "--triton-url" in shown
