"""The other end of listener.py: passes Triton's requests to the model with the engine, and its answers to Triton."""

import itertools
import socket
import threading
from contextlib import suppress
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonlive.backend.responses import BEHIND_JOBS, ResponseWriter, Sender
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.tensor_names import STREAM

from .messages import Answer, Array, Cancel, Connection, Infer, address

CANCELLATION_INTERVAL_S = 0.25
# vllm_backend's words before what it refuses while it makes a response.
PREFIX = "Error generating stream: "


class EngineLink:
    """Requests on their way. Triton's thread submits; a thread receives answers; another looks for cancellations."""

    def __init__(self, engine_model: str, *, is_decoupled: bool) -> None:
        self._engine_model = engine_model
        self._is_decoupled = is_decoupled
        self._writer = ResponseWriter()
        self._numbers = itertools.count()
        self._pending: dict[int, Sender] = {}
        self._connection: Connection | None = None
        self._closing = threading.Event()
        threading.Thread(target=self._watch_cancellations, name="cancellations", daemon=True).start()

    def submit(self, request: Any) -> None:
        """Pass on one Triton request; every request gets a last response, whatever happens."""
        sender, number = Sender(request.get_response_sender()), next(self._numbers)
        try:
            arrays = [Array.of(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
        except Exception as error:  # Triton's binding raises anything for bytes that are no strings
            self._fail(sender, f"the inputs cannot be read: {error}", ErrorCode.INVALID)
            return
        if not self._is_decoupled and any(array.name == STREAM and any(array.data) for array in arrays):
            self._fail(sender, f"{STREAM}: this model answers once: ask the one that streams", ErrorCode.INVALID)
            return
        self._pending[number] = sender
        try:
            self._connected().send(Infer(number, request.parameters(), arrays))
        except OSError as error:
            if self._pending.pop(number, None) is not None:  # else the receiving thread has failed it
                message = f"the model {self._engine_model} cannot be reached: {error}"
                self._fail(sender, message, ErrorCode.UNAVAILABLE)

    def close(self) -> None:
        """End the threads, after the answers that have come."""
        self._closing.set()
        if self._connection is not None:
            self._connection.close()
        self._writer.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                opened.connect(address(self._engine_model))
            except OSError:
                opened.close()
                raise
            self._connection = Connection(opened)
            threading.Thread(target=self._receive, args=[self._connection], name="answers", daemon=True).start()
        return self._connection

    def _receive(self, connection: Connection) -> None:
        for answer in connection.receive(Answer):
            self._take(answer)
            # Without this, answers would gather here; the socket fills, and the engine's model gives larger ones.
            if self._writer.queue_length >= BEHIND_JOBS:
                caught_up = threading.Event()
                self._writer.call(caught_up.set)
                caught_up.wait()
        lost = list(self._pending)  # before others can come over a new connection
        self._connection = None
        for number in lost:
            self._take(Answer(number, is_final=True, error="the engine's model has gone", code=ErrorCode.UNAVAILABLE))

    def _take(self, answer: Answer) -> None:
        sender = self._pending.pop(answer.number, None) if answer.is_final else self._pending.get(answer.number)
        if sender is None:
            return
        if answer.error is not None:
            self._fail(sender, answer.error, ErrorCode(answer.code))
        elif answer.outputs:
            tensors = {array.name: array.as_numpy() for array in answer.outputs}
            self._writer.send(sender, tensors, final=answer.is_final)
        else:
            self._writer.finish(sender)

    def _fail(self, sender: Sender, message: str, code: ErrorCode) -> None:
        """Answer in vllm_backend's words, without the code that clients of our own split off."""
        text = f"{PREFIX}{message}" if code in (ErrorCode.INVALID, ErrorCode.INTERNAL) else message
        self._writer.call(lambda: sender.fail_with(text, code))

    def _watch_cancellations(self) -> None:
        while not self._closing.wait(CANCELLATION_INTERVAL_S):
            if self._pending:
                self._writer.call(self._pass_on_cancellations)

    def _pass_on_cancellations(self) -> None:
        connection = self._connection
        for number, sender in list(self._pending.items()):
            if connection is not None and sender.is_cancelled():
                with suppress(OSError):  # the receiving thread notices, too
                    connection.send(Cancel(number))


def engine_model(config: dict[str, Any]) -> str:
    """Name of the model with the engine, from the parameter ENGINE_MODEL of config.pbtxt.

    Raises TritonModelException without one.
    """
    try:
        return config["parameters"]["ENGINE_MODEL"]["string_value"]
    except KeyError:
        raise pb_utils.TritonModelException(
            f"{config['name']}: config.pbtxt must name the model with the engine in the parameter ENGINE_MODEL"
        ) from None
