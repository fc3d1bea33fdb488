"""tritonlive/launch/exposure.py: no address of other machines without an inference key, unless forced."""

from typing import Any

import pytest
from typer.testing import CliRunner

from tritonlive.cli.app import app
from tritonlive.launch import LaunchError, StackConfig
from tritonlive.launch.exposure import is_loopback
from tritonlive.launch.ports import ReservedPorts, check_addresses

LOCAL = ["127.0.0.1", "127.3.2.1", "localhost", "::1"]
NETWORK = ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1", "169.254.0.1"]


@pytest.mark.parametrize(
    ("host", "is_local"), [*((host, True) for host in LOCAL), *((host, False) for host in NETWORK)]
)
def test_addresses(host: str, *, is_local: bool) -> None:
    assert is_loopback(host) is is_local


@pytest.mark.row(52)
@pytest.mark.parametrize("option", ["host", "triton_host", "triton_http_host"])
def test_a_stack_on_the_network_needs_a_key(option: str) -> None:
    named = "--" + option.replace("_", "-")
    hosts: dict[str, Any] = {option: "192.0.2.7"}
    with pytest.raises(LaunchError, match=rf"^{named} 192\.0\.2\.7: other machines.*--api-key.*--allow-network"):
        ReservedPorts(StackConfig(model="m", **hosts))


@pytest.mark.row(52)
@pytest.mark.parametrize(
    "allowed", [{"api_key": "k"}, {"allow_network_without_key": True}, {"triton_http": False}], ids=str
)
def test_a_key_or_the_flag_or_no_port_is_enough(allowed: dict[str, Any]) -> None:
    config = StackConfig(model="m", triton_http_host="192.0.2.7", **allowed)
    check_addresses(config, has_key=bool(config.api_key))


@pytest.mark.row(52)
@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--triton-host", "0.0.0.0"],
        ["frontend", "--host", "0.0.0.0"],
        ["triton-env", "--triton-host", "::"],
    ],
    ids=" ".join,
)
def test_commands_refuse_it(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONLIVE_API_KEY", "")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "other machines could reach this address, and inference needs no key" in result.stderr


@pytest.mark.row(52)
def test_a_key_of_commas_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONLIVE_API_KEY", ", ,")
    for command in ("serve", "frontend", "triton-env"):
        option = "--triton-host" if command == "triton-env" else "--host"
        assert CliRunner().invoke(app, [command, option, "0.0.0.0"]).exit_code == 1
