"""Requests of the models without a batch dimension, in the process of the model with the engine."""

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonlive.backend.responses import Sender, code_of, text_of

from .messages import Answer, Array, Cancel, Connection, Infer, address

Submit = Callable[[Sequence[tuple[Any, Sender]]], None]


class LinkedTensor:
    """An input as Triton's own tensors are read, with the batch dimension of 1 in front."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def name(self) -> str:
        return self._array.name

    def as_numpy(self) -> np.ndarray:
        return self._array.as_numpy()[np.newaxis]


class LinkedRequest:
    """A request as Triton's own requests are read."""

    def __init__(self, message: Infer) -> None:
        self._parameters = message.parameters
        self._inputs = [LinkedTensor(array) for array in message.inputs]

    def inputs(self) -> list[LinkedTensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters


class LinkedSender(Sender):
    """Answers over a connection. Like its base, for the writer's thread only."""

    def __init__(self, connection: Connection, number: int, forget: Callable[[int], object]) -> None:
        self._connection = connection
        self._number = number
        self._forget = forget
        self.client_has_gone = False

    def send(self, tensors: Mapping[str, np.ndarray], final: bool) -> None:
        outputs = [Array.of(name, array[0]) for name, array in tensors.items()]
        self._answer(Answer(self._number, final, outputs))

    def finish(self) -> None:
        self._answer(Answer(self._number, is_final=True))

    def fail(self, error: Exception) -> None:
        self._answer(Answer(self._number, is_final=True, error=text_of(error), code=code_of(error)))

    def is_cancelled(self) -> bool:
        return self.client_has_gone

    def _answer(self, answer: Answer) -> None:
        if answer.is_final:
            self._forget(self._number)
        self._connection.send(answer)


class Listener:
    """Accepts connections of those models, and submits their requests."""

    def __init__(self, engine_model: str, submit: Submit) -> None:
        """`submit` takes requests with their senders, from any thread."""
        self._submit = submit
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._address = address(engine_model)
        self._connections: set[Connection] = set()
        self._thread = threading.Thread(target=self._accept, name="unbatched-listener", daemon=True)

    def start(self) -> None:
        """Listen. Without it this model works, and only the others do not; so a failure is logged."""
        try:
            self._socket.bind(self._address)
        except OSError as error:
            pb_utils.Logger.log_error(f"models without a batch dimension cannot reach this one: {error}")
            return
        self._socket.listen()
        self._thread.start()

    def close(self) -> None:
        """Close all connections; their requests are cancelled."""
        with contextlib.suppress(OSError):  # it does not listen
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()  # the address is in use until `accept` has returned
        self._socket.close()
        for connection in list(self._connections):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._socket.accept()
            except OSError:
                return
            try:
                connection = Connection(connected)
            except PermissionError as error:
                pb_utils.Logger.log_warn(f"refused a connection: {error}")
                continue
            threading.Thread(target=self._serve, args=[connection], name="unbatched-requests", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        self._connections.add(connection)
        senders: dict[int, LinkedSender] = {}
        try:
            for message in connection.receive(Infer | Cancel):
                if isinstance(message, Infer):
                    sender = LinkedSender(connection, message.number, lambda number: senders.pop(number, None))
                    senders[message.number] = sender
                    self._submit([(LinkedRequest(message), sender)])
                elif (found := senders.get(message.number)) is not None:
                    found.client_has_gone = True
        finally:
            self._connections.discard(connection)
            connection.close()
            for sender in list(senders.values()):
                sender.client_has_gone = True
