"""Control over Triton's gRPC: the tensors control_… of the model `llm`."""

import json
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from sync.errors import (
    ConflictError,
    ControlError,
    DeadlineError,
    InvalidError,
    RefusedError,
    SyncError,
    UnavailableError,
)
from tritonlive.wire.triton_tensors import build_request, control_tensors, read_strings

from .client import DEFAULT_TIMEOUT_S, ControlClient
from .target import Target

# A decoupled model is reached by the streaming call only. With this header Triton ends the call with a gRPC status on
# an error, instead of an error text without a code.
METADATA = (("triton_grpc_error", "true"),)
# The list of a big model's parameters is longer than gRPC's default of 4 MiB.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A replica that was away for a minute would else be refused for up to two more after it has come back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

END_TIMEOUT_S = 1.0

ERRORS: dict[grpc.StatusCode, type[ControlError]] = {
    grpc.StatusCode.UNAUTHENTICATED: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidError,
    grpc.StatusCode.NOT_FOUND: UnavailableError,  # the model is not loaded, or not loaded yet
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


class AnsweredCalls:
    """Calls that have brought their answers, and which Triton is about to end.

    They must end by themselves: one that is cancelled, as it would be if it were forgotten, while Triton 2.51 sends,
    leaves its request in there, and keeps the model from being unloaded.
    """

    def __init__(self) -> None:
        self._running: set[Any] = set()

    def add(self, call: Any) -> None:
        self._running.add(call)
        call.add_done_callback(self._running.discard)

    def wait(self) -> None:
        """Until they have ended, a second each at most."""
        for call in list(self._running):
            with suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.exception(timeout=END_TIMEOUT_S)


class GrpcControl(ControlClient):
    """Control client of a Triton server."""

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout)
        self._channel = open_channel(target)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._answered = AnsweredCalls()

    def call(
        self,
        operation: str,
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
    ) -> dict[str, Any]:
        arguments = (arguments or {}) | ({"holder": self.holder} if self.holder else {})
        tensors = control_tensors(operation, arguments, self.target.control_key, payload)
        seconds = self.timeout if timeout is None else timeout
        responses = self._stub.ModelStreamInfer(iter([build_request(tensors)]), timeout=seconds, metadata=METADATA)
        try:
            for response in responses:
                if response.error_message:
                    raise InvalidError(str(self.target), operation, response.error_message)
                if response.infer_response.raw_output_contents:
                    return json.loads(read_strings(response.infer_response.raw_output_contents[0])[0])
        except grpc.RpcError as error:
            raise typed(self.target, operation, error, seconds) from None
        finally:
            self._answered.add(responses)
        raise ControlError(str(self.target), operation, "the server ended the call without an answer")

    def close(self) -> None:
        self._answered.wait()
        self._channel.close()


def open_channel(target: Target) -> grpc.Channel:
    """A connection to Triton, made when it is first used."""
    if target.is_secure:
        return grpc.secure_channel(target.authority, grpc.ssl_channel_credentials(), options=CHANNEL_OPTIONS)
    return grpc.insecure_channel(target.authority, options=CHANNEL_OPTIONS)


def typed(target: Target, operation: str, error: grpc.RpcError, seconds: float) -> SyncError:
    """What gRPC raised, as an error of `sync.errors`; `seconds` was the call's deadline."""
    if not isinstance(error, grpc.Call):
        return ControlError(str(target), operation, str(error))
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{target}: {operation}: no answer within {seconds:g} s")
    # Triton has no code for a missing key; the model's message begins with the tensor at fault.
    if "control_key:" in details.partition(" ")[0]:
        return RefusedError(str(target), operation, details)
    return ERRORS.get(code, ControlError)(str(target), operation, details)
