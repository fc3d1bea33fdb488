"""Control over Triton's gRPC: the tensors control_… of the model `llm`."""

import json
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .control import DEFAULT_TIMEOUT_S, ControlClient
from .errors import ConflictError, ControlError, DeadlineError, InvalidError, RefusedError, SyncError, UnavailableError
from .target import Target

MODEL = "llm"
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

ERRORS: dict[grpc.StatusCode, type[ControlError]] = {
    grpc.StatusCode.UNAUTHENTICATED: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidError,
    grpc.StatusCode.NOT_FOUND: UnavailableError,  # the model is not loaded, or not loaded yet
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


class GrpcControl(ControlClient):
    """Control client of a Triton server."""

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout)
        if target.is_secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(target.authority, credentials, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target.authority, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def call(
        self,
        operation: str,
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
    ) -> dict[str, Any]:
        arguments = (arguments or {}) | ({"holder": self.holder} if self.holder else {})
        tensors = {"control_operation": operation, "control_arguments": json.dumps(arguments)}
        if self.target.control_key:
            tensors["control_key"] = self.target.control_key
        seconds = self.timeout if timeout is None else timeout
        responses = self._stub.ModelStreamInfer(iter([_request(tensors, payload)]), timeout=seconds, metadata=METADATA)
        try:
            for response in responses:
                if response.error_message:
                    raise InvalidError(str(self.target), operation, response.error_message)
                if response.infer_response.raw_output_contents:
                    return json.loads(_read_string(response.infer_response.raw_output_contents[0]))
        except grpc.RpcError as error:
            raise self._typed(operation, error, seconds) from None
        finally:
            responses.cancel()
        raise ControlError(str(self.target), operation, "the server ended the call without an answer")

    def close(self) -> None:
        self._channel.close()

    def _typed(self, operation: str, error: grpc.RpcError, seconds: float) -> SyncError:
        if not isinstance(error, grpc.Call):
            return ControlError(str(self.target), operation, str(error))
        code, details = error.code(), error.details() or "no details"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{self.target}: {operation}: no answer within {seconds:g} s")
        # Triton has no code for a missing key; the model's message begins with the tensor at fault.
        if "control_key:" in details.partition(" ")[0]:
            return RefusedError(str(self.target), operation, details)
        return ERRORS.get(code, ControlError)(str(self.target), operation, details)


def _request(tensors: dict[str, str], payload: bytes | None) -> Any:
    """A request with BYTES tensors of shape [1, 1], and the payload as UINT8 [1, len(payload)]."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)  # ty: ignore[missing-attribute] - generated
    for name, value in tensors.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        data = value.encode()
        # Triton's encoding of one string: its length as four bytes, little endian, then the string.
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    if payload is not None:
        request.inputs.add(name="control_payload", datatype="UINT8", shape=[1, len(payload)])
        request.raw_input_contents.append(payload)
    return request


def _read_string(raw: bytes) -> str:
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode()
