"""The Rust process: what it is told, and its end. The processes are real; a shell stands in for vllm-rs."""

import asyncio
import os
import resource
import socket
from pathlib import Path

import pytest

from openai_frontend.rust import rust_process
from openai_frontend.rust.rust_process import RustProcess, command, environment

KEYS = {"TRITONLIVE_API_KEY": "a,b", "TRITONLIVE_CONTROL_KEY": "c", "VLLM_API_KEY": "d"}


def test_it_learns_the_inference_key_and_no_other_one() -> None:
    told = environment({**KEYS, "PATH": "/bin"}, "a")
    assert {name: value for name, value in told.items() if "KEY" in name} == {"VLLM_API_KEY": "a"}
    assert told["PATH"] == "/bin"
    assert "VLLM_API_KEY" not in environment(KEYS, None)


@pytest.mark.parametrize("name", ["VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"])
def test_it_gets_no_routes_of_control(name: str) -> None:
    assert name not in environment({name: "1"}, None)


def test_no_key_is_on_its_command_line() -> None:
    words = command(Path("/x/vllm-rs"), [3, 4, 5], 2, "{}")
    assert words[:2] == ["/x/vllm-rs", "frontend"]
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        "--listen-fd": "3",
        "--input-listener-fd": "4",
        "--output-listener-fd": "5",
        "--engine-count": "2",
        "--data-parallel-size": "2",
        "--args-json": "{}",
    }


async def start(tmp_path: Path, script: str) -> RustProcess:
    binary = tmp_path / "vllm-rs"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    listeners = [socket.socket() for _ in range(3)]
    try:
        return await RustProcess.start(binary, listeners, 1, "{}", None)
    finally:
        for listener in listeners:
            listener.close()


async def test_it_has_the_listeners_open(tmp_path: Path) -> None:
    process = await start(tmp_path, 'for fd in "$3" "$5" "$7"; do [ -S "/proc/$$/fd/$fd" ] || exit 7; done')
    assert await process.ended() == 0


async def test_one_that_hears_a_signal_may_end_by_itself(tmp_path: Path) -> None:
    process = await start(tmp_path, 'trap "exit 3" TERM; while :; do sleep 0.05; done')
    await asyncio.sleep(0.3)
    await process.stop(5)
    assert await process.ended() == 3


async def test_one_that_does_not_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rust_process, "KILL_AFTER_S", 0.2)
    process = await start(tmp_path, 'trap "" TERM; while :; do sleep 0.05; done')
    await asyncio.sleep(0.3)
    await process.stop(0)
    assert await process.ended() == -9
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_its_memory_has_a_limit(tmp_path: Path) -> None:
    process = await start(tmp_path, "sleep 60")
    assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] == rust_process.MAX_ADDRESS_SPACE
    await process.stop(1)
