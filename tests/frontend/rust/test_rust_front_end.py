"""One Rust process after another. The processes are real; scripts stand in for vllm-rs."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never, cast

import pytest

from openai_frontend.errors import EngineUnavailable
from openai_frontend.rust import rust_front_end as module
from openai_frontend.rust.bridge import Bridge
from openai_frontend.rust.engine_sockets import EngineSockets
from openai_frontend.rust.rust_front_end import RustError, RustFrontEnd, Setting
from tritonlive import backoff

TIMEOUT_S = 20


class Replicas:
    """Those of the bridge: they can generate, or not."""

    def __init__(self) -> None:
        self.can_generate = True

    def eligible(self) -> list[str]:
        return ["a"] if self.can_generate else []

    async def require(self) -> None:
        if not self.can_generate:
            raise EngineUnavailable("a: gone")


class FakeBridge:
    def __init__(self) -> None:
        self.replicas = Replicas()
        self.attached: list[bool] = []

    def attach(self, send: Any) -> None:
        self.attached.append(send is not None)

    def take(self, engine: int, frames: list[bytes]) -> None:
        raise AssertionError("no script sends anything")


@pytest.fixture
def http() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.fixture
def bridge() -> FakeBridge:
    return FakeBridge()


def front_end(bridge: FakeBridge, http: socket.socket, folder: Path, script: str) -> RustFrontEnd:
    binary = folder / "vllm-rs"
    binary.write_text(f"#!/bin/sh\ncd {folder}\necho started >> starts\n{script}\n")
    binary.chmod(0o755)
    return RustFrontEnd(cast(Bridge, bridge), Setting(binary, http, "{}", [b"ready"], None, drain_s=1))


def starts(folder: Path) -> int:
    path = folder / "starts"
    return path.read_text().count("started") if path.exists() else 0


async def until_started(folder: Path, times: int, front_end: asyncio.Task[Never]) -> None:
    """Raises what the front end has ended with, if it has."""
    async with asyncio.timeout(TIMEOUT_S):
        while starts(folder) < times:
            if front_end.done():
                front_end.result()
            await asyncio.sleep(0.02)


async def test_one_that_cannot_start_is_not_tried_again(bridge: FakeBridge, http: Any, tmp_path: Path) -> None:
    with pytest.raises(RustError, match="ended with status 2; it says why above"):
        await front_end(bridge, http, tmp_path, "exit 2").run()
    assert starts(tmp_path) == 1
    assert bridge.attached == [True, False]


async def test_one_that_is_killed_is_started_again_each_time(
    bridge: FakeBridge, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can kill it. A status is no reason to give up either, once a process has served."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(module, "STABLE_S", 0.3)
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *values: said.append(text % values))
    script = """n=$(wc -l < starts)
    [ $n -le 8 ] && kill -9 $$
    [ $n = 9 ] && sleep 0.5 && exit 1
    [ $n = 10 ] && exit 1
    sleep 60"""
    task = asyncio.create_task(front_end(bridge, http, tmp_path, script).run())
    await until_started(tmp_path, 11, task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == [
        *["vllm-rs was killed by signal 9; starting it again"] * 8,
        *["vllm-rs ended with status 1; it says why above; starting it again"] * 2,
    ]


async def test_one_that_ends_after_its_replicas_were_lost_and_back_is_started_again(
    bridge: FakeBridge, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before it has served."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    task = asyncio.create_task(front_end(bridge, http, tmp_path, "[ $(wc -l < starts) = 2 ] && exit 1; sleep 60").run())
    await until_started(tmp_path, 1, task)
    bridge.replicas.can_generate = False
    await asyncio.sleep(0.5)
    bridge.replicas.can_generate = True
    await until_started(tmp_path, 3, task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_message_that_no_engine_understands_costs_the_process(
    bridge: FakeBridge, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)

    pids = tmp_path / "pids"

    async def receive(sockets: EngineSockets, index: int) -> list[bytes]:
        while not (pids.exists() and pids.read_text()):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
        if starts(tmp_path) > 1:
            await asyncio.Event().wait()
        return [b"unknown", b""]

    def take(engine: int, frames: list[bytes]) -> None:
        raise ValueError(f"a message of the unknown type {frames[0]!r}")

    monkeypatch.setattr(EngineSockets, "receive", receive)
    monkeypatch.setattr(bridge, "take", take)
    script = "echo $$ >> pids; sleep 60"
    task = asyncio.create_task(front_end(bridge, http, tmp_path, script).run())
    await until_started(tmp_path, 2, task)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text().split()[0]), 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_while_no_replica_can_generate_none_is_started_and_clients_are_refused(
    bridge: FakeBridge, http: socket.socket, tmp_path: Path
) -> None:
    bridge.replicas.can_generate = False
    task = asyncio.create_task(front_end(bridge, http, tmp_path, "sleep 60").run())
    await asyncio.sleep(0.5)
    assert starts(tmp_path) == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(http.getsockname(), 1):
        pass
    bridge.replicas.can_generate = True
    await until_started(tmp_path, 1, task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_replica_that_comes_back_gets_a_new_process(bridge: FakeBridge, http: Any, tmp_path: Path) -> None:
    task = asyncio.create_task(front_end(bridge, http, tmp_path, "sleep 60").run())
    await until_started(tmp_path, 1, task)
    bridge.replicas.can_generate = False
    await asyncio.sleep(1)
    assert starts(tmp_path) == 1
    bridge.replicas.can_generate = True
    await until_started(tmp_path, 2, task)
    assert bridge.attached == [True, False, True]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert bridge.attached[-1] is False


async def test_a_stop_gives_it_time(bridge: FakeBridge, http: Any, tmp_path: Path) -> None:
    script = 'trap "sleep 0.5; echo drained > drained; exit 0" TERM; while :; do sleep 0.05; done'
    task = asyncio.create_task(front_end(bridge, http, tmp_path, script).run())
    await until_started(tmp_path, 1, task)
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "drained").read_text() == "drained\n"
