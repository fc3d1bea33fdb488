"""A control client without a wire: it calls the model's Control on its loop, and can lose calls and answers."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sync.control.client import DEFAULT_TIMEOUT_S, Call, ControlClient
from sync.control.control_errors import control_error
from sync.control.target import Target
from sync.errors import (
    DeadlineError,
    SyncError,
    UnavailableError,
)
from tritonlive.backend.tensors import RequestError
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operations import HOLDER_ARGUMENT

from .contents import Content
from .control_requests import control_request
from .engine import KEY
from .labels import Labels
from .replicas import Replica

LATE_S = 0.05


class TrainerKilled(Exception):
    """Ends a trainer like the death of its process; the trainer cannot handle it."""


@dataclass
class WireFault:
    """A fault of the next call of that name from a trainer to a replica."""

    replica: str
    operation: str
    how: str
    """lose_call, lose_answer, late (the call arrives after its client has given up), trainer_dies, interfere."""
    interfere: Callable[[], None] | None = None
    """Runs just before the call, like a call of another client."""


class Wire:
    """The faults to come, shared by a trainer's clients; `is_cut` when its process is gone."""

    def __init__(self) -> None:
        self.faults: list[WireFault] = []
        self.is_cut = False
        self.replicas: list[Replica] = []
        self.labels: Labels | None = None
        self.content: Content | None = None
        """Content of the push under way."""
        self.label: str | None = None
        """Label of the push under way."""
        self.states: dict[str, str] = {}
        """States of the replicas when the wire was cut."""

    def cut(self) -> None:
        """The trainer's process is gone."""
        self.is_cut = True
        self.states = {replica.name: replica.state for replica in self.replicas}

    def note_commit(self, label: str | None) -> None:
        if label is not None and self.labels is not None and self.content is not None:
            self.label = label
            self.labels.attempt(label, self.content)

    def take(self, replica: str, operation: str) -> WireFault | None:
        found = next((f for f in self.faults if (f.replica, f.operation) == (replica, operation)), None)
        if found is not None:
            self.faults.remove(found)
        return found


class InProcessControl(ControlClient):
    """Control of one replica in this process."""

    def __init__(self, replica: Replica, wire: Wire) -> None:
        super().__init__(Target.parse(f"grpc://{replica.name}:1", KEY), DEFAULT_TIMEOUT_S)
        self._replica = replica
        self._wire = wire

    def send(self, call: Call) -> dict[str, Any]:
        operation, seconds = call.operation.name, call.timeout
        if self._wire.is_cut:
            raise UnavailableError(str(self.target), operation, "the trainer is dead")
        full = call.arguments | ({HOLDER_ARGUMENT: self.holder} if self.holder else {})
        fault = self._wire.take(self._replica.name, operation)
        how = fault.how if fault is not None else ""
        lost = DeadlineError(f"{self.target}: {operation}: no answer within {seconds:g} s")
        if how == "trainer_dies":
            self._wire.cut()
            raise TrainerKilled
        if operation == "finish_weight_update":
            self._wire.note_commit(full.get("weight_version"))
        if how == "lose_call":
            raise lost
        if how == "late":
            loop = self._replica.loop
            loop.call_soon_threadsafe(lambda: loop.call_later(LATE_S, lambda: self._submit(operation, full)))
            raise lost
        if fault is not None and fault.interfere is not None:
            fault.interfere()
        future = self._submit(operation, full)
        try:
            result = json.loads(future.result(seconds))
        except TimeoutError:
            raise lost from None
        except Exception as error:
            if how == "lose_answer":
                raise lost from None
            raise self._typed(operation, error) from None
        if how == "lose_answer":
            raise lost
        return result

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _submit(self, operation: str, arguments: dict[str, Any]) -> "Future[str]":
        request = control_request(operation, arguments, KEY)
        call = self._replica.call(request, operation)
        future = asyncio.run_coroutine_threadsafe(call, self._replica.loop)
        future.add_done_callback(lambda done: done.exception())  # of a late call nobody asks
        return future

    def _typed(self, operation: str, error: Exception) -> SyncError:
        """Converts Triton's form of the model's error, like grpc_control.typed."""
        code = error.code if isinstance(error, RequestError) else ErrorCode.INTERNAL
        return control_error(self.target, operation, str(error), code)
