"""Control clients without a network, for tests of fleets."""

import threading
from collections.abc import Callable
from typing import Any

from sync.control.client import Call, ControlClient
from sync.control.fleet import Fleet
from sync.control.target import Target

Answer = Callable[[dict[str, Any]], Any]


class ScriptedClient(ControlClient):
    """Answers each operation as `answers` says: with a value, by raising an error, or by a call of the arguments."""

    def __init__(self, name: str, **answers: Any) -> None:
        super().__init__(Target.parse(f"http://{name}"))
        self.answers: dict[str, Any] = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def send(self, call: Call) -> dict[str, Any]:
        name = call.operation.name
        with self._lock:
            self.calls.append((name, call.arguments))
        assert call.timeout > 0
        assert call.timeout != self.timeout, f"{name}: every call of a fleet has a deadline of its own"
        answer = self.answers.get(name, {})
        if isinstance(answer, BaseException):
            raise answer
        return answer(call.arguments) if callable(answer) else answer

    def close(self) -> None:
        """Nothing to close."""

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.calls]

    def arguments(self, operation: str) -> dict[str, Any]:
        """Arguments of the last call of the operation."""
        return [arguments for name, arguments in self.calls if name == operation][-1]


def fleet_of(*clients: ScriptedClient) -> Fleet:
    return Fleet(clients)
