"""A start is timed to its first token, with nothing else running."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.client import LoadError
from bench.start import StartFirstToken, StartSide, complete_one_token
from bench.systems import Settings
from tests.bench.stand_ins import LocalServer, local_server


class Systems:
    """Records what is started and stopped."""

    labels = ("tritonlive", "vllm")

    def __init__(self, server: LocalServer) -> None:
        self.settings = Settings(Path("m"), served_name="m")
        self.events: list[str] = []
        self._server = server

    def server(self, label: str) -> None:
        self.events.append(f"server {label}")

    def stop(self) -> None:
        self.events.append("stop all")

    @contextmanager
    def start(self, label: str) -> Iterator[LocalServer]:
        self.events.append(f"start {label}")
        yield self._server
        self.events.append(f"stop {label}")


class Tokens:
    """Answers completions and records their bodies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.bodies.append(body)
        return (200 if body["model"] == "m" else 404), json.dumps({"choices": []}).encode()


def test_both_have_run_before_and_each_start_has_the_machine_to_itself():
    tokens = Tokens()
    with local_server(tokens.answer) as server:
        systems: Any = Systems(server)
        for side in StartFirstToken().sides(systems):
            assert isinstance(side, StartSide)
            side.warm_up()
            assert side.processes() == []
            assert side.run(seed=0)["seconds"] > 0
    assert systems.events == [
        *("server tritonlive", "server vllm", "stop all"),
        *("start tritonlive", "stop tritonlive", "start vllm", "stop vllm"),
    ]
    assert [body["max_tokens"] for body in tokens.bodies] == [1, 1]


def test_without_a_token_there_is_no_figure():
    with local_server(Tokens().answer) as server, pytest.raises(LoadError, match="404"):
        complete_one_token(server.url, "no such model")
