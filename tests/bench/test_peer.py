"""Which server is started, and what of it is called its front end."""

from pathlib import Path

import pytest

from bench import peer, rust_peer
from bench.peer import VllmServe


def test_vllms_server_is_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_RUST_FRONTEND", raising=False)
    process = VllmServe("m", ("--max-model-len", "8"), served_name="a")._process
    assert process.command[2] == peer.ENTRY_MODULE
    assert process.command[-2:] == ["--max-model-len", "8"]
    assert "VLLM_USE_RUST_FRONTEND" not in process.env


def test_the_rust_front_end_is_chosen_by_the_environment() -> None:
    process = VllmServe("m", served_name="a", rust_binary=Path("/a/vllm-rs"))._process
    assert process.command[2] == rust_peer.__name__
    assert process.env["VLLM_USE_RUST_FRONTEND"] == "1"
    assert process.env["VLLM_RUST_FRONTEND_PATH"] == "/a/vllm-rs"


def test_a_server_that_does_not_run_has_no_processes() -> None:
    for binary in (None, Path("/a/vllm-rs")):
        assert VllmServe("m", served_name="a", rust_binary=binary).frontend_processes() == []
