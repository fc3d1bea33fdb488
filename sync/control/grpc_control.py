"""Control over Triton's gRPC: the tensors control_… of the model `llm`."""

import json
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from sync.errors import ControlError, DeadlineError, SyncError
from tritonlive.triton_messages import build_request
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operations import HOLDER_ARGUMENT
from tritonlive.wire.triton_tensors import control_tensors, read_strings

from .client import DEFAULT_TIMEOUT_S, Call, ControlClient
from .control_errors import triton_error
from .target import Target

# A decoupled model is reached by the streaming call only. With this header Triton ends the call with a gRPC status on
# an error, instead of an error text in a response.
METADATA = (("triton_grpc_error", "true"),)
# The list of a big model's parameters is longer than gRPC's default of 4 MiB.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default gRPC would wait up to two minutes before it tries again to reach a replica that has come back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

END_TIMEOUT_S = 1.0

# For errors of gRPC, of a proxy or of Triton itself, whose message has no code.
CODES: Mapping[grpc.StatusCode, ErrorCode] = MappingProxyType(
    {
        grpc.StatusCode.UNAUTHENTICATED: ErrorCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED: ErrorCode.REFUSED,
        grpc.StatusCode.ALREADY_EXISTS: ErrorCode.CONFLICT,
        grpc.StatusCode.FAILED_PRECONDITION: ErrorCode.CONFLICT,
        grpc.StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID,
        grpc.StatusCode.NOT_FOUND: ErrorCode.UNAVAILABLE,  # the model is not loaded, or not loaded yet
        grpc.StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    }
)


class AnsweredCalls:
    """Calls that have brought their answers, and which Triton is about to end.

    A call is cancelled when it is garbage. One that is cancelled while Triton 2.51 sends leaves its request in Triton
    and keeps the model from being unloaded, so calls are kept here until they have ended by themselves.
    """

    def __init__(self) -> None:
        self._running: set[Any] = set()

    def add(self, call: Any) -> None:
        self._running.add(call)
        call.add_done_callback(self._running.discard)

    def wait(self) -> None:
        """Wait until they have ended, for a second each at most."""
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

    def send(self, call: Call) -> dict[str, Any]:
        name = call.operation.name
        arguments = call.arguments | ({HOLDER_ARGUMENT: self.holder} if self.holder else {})
        tensors = control_tensors(name, arguments, self.target.key, call.payload)
        responses = self._stub.ModelStreamInfer(iter([build_request(tensors)]), timeout=call.timeout, metadata=METADATA)
        try:
            for response in responses:
                if response.error_message:
                    raise triton_error(self.target, name, response.error_message)
                if response.infer_response.raw_output_contents:
                    return json.loads(read_strings(response.infer_response.raw_output_contents[0])[0])
        except grpc.RpcError as error:
            raise typed(self.target, name, error, call.timeout) from None
        finally:
            self._answered.add(responses)
        raise ControlError(str(self.target), name, "the server ended the call without an answer")

    def close(self) -> None:
        self._answered.wait()
        self._channel.close()


def open_channel(target: Target) -> grpc.Channel:
    """A connection to Triton, made when it is first used."""
    if target.is_secure:
        return grpc.secure_channel(target.authority, grpc.ssl_channel_credentials(), options=CHANNEL_OPTIONS)
    return grpc.insecure_channel(target.authority, options=CHANNEL_OPTIONS)


def typed(target: Target, operation: str, error: grpc.RpcError, seconds: float) -> SyncError:
    """Convert gRPC's exception to an error of `sync.errors`. `seconds` was the call's deadline."""
    if not isinstance(error, grpc.Call):
        return ControlError(str(target), operation, str(error))
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{target}: {operation}: no answer within {seconds:g} s")
    return triton_error(target, operation, details, CODES.get(code, ErrorCode.INTERNAL))
