"""tritonlive/cli/app.py: the command as a whole."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import tritonlive
from tritonlive.cli import stack_options
from tritonlive.cli.app import app

COMMANDS = (
    *("serve", "frontend", "triton-env", "model-repository"),
    *("push", "check", "status", "timeline", "rollback", "reload", "push-adapter", "adapters", "remove-adapter"),
)
HEAVY = ("numpy", "torch", "transformers", "tritonclient", "vllm")
PROGRAM = f"""
import sys
from tritonlive.cli.app import app
app(standalone_mode=False)
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_every_command_is_listed() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    assert all(f"│ {command} " in output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Usage: tritonlive {command}" in result.output or f"{command} [OPTIONS]" in result.output
    if command in ("serve", "frontend", "triton-env", "model-repository", "push", "check", "rollback", "reload"):
        assert f"tritonlive {command}" in result.output.partition("Example")[2]


@pytest.mark.parametrize("arguments", [["--help"], ["push", "--help"], ["serve", "--help"], ["frontend", "--help"]])
def test_help_waits_for_no_heavy_import(arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"{tritonlive.__version__}\n"


def test_a_shell_completes_commands() -> None:
    asked = {"_TRITONLIVE_COMPLETE": "complete_bash", "COMP_WORDS": "tritonlive pu", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "tritonlive"], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["push", "push-adapter"]


@pytest.mark.parametrize("command", ["serve", "frontend", "triton-env"])
def test_without_the_servers_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(stack_options, "SERVER_PACKAGES", ("psutil", "no_such_package"))
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert f"`tritonlive {command}` needs the server's packages; not installed here: no_such_package." in result.output
    assert 'pip install "tritonlive[server]"' in result.output
