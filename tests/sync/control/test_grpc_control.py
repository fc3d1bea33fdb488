"""The gRPC client against a server that answers like Triton's decoupled model."""

import gc
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sync import ConflictError, ControlError, DeadlineError, InvalidError, RefusedError, UnavailableError
from sync.control.connect import connect
from sync.control.target import Target
from tritonlive.triton_messages import build_request

KEY = "grpc-key"


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers control requests with their own content, or with the configured error."""

    def __init__(self) -> None:
        self.port = 0
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.delay = threading.Event()
        self.requests: list[dict[str, str]] = []
        self.ends_late = threading.Event()
        self.were_active: list[bool] = []  # calls, when they were ended

    def ModelStreamInfer(self, request_iterator, context):  # noqa: N802 - generated
        for request in request_iterator:
            strings = [raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode() for raw in request.raw_input_contents]
            tensors = dict(zip([tensor.name for tensor in request.inputs], strings, strict=True))
            assert all(list(tensor.shape) == [1, 1] for tensor in request.inputs)
            assert dict(context.invocation_metadata())["triton_grpc_error"] == "true"
            self.requests.append(tensors)
            if self.delay.is_set():
                time.sleep(1)
            if self.error is not None:
                context.abort(*self.error)
            answer = json.dumps({"asked": tensors["control_operation"]}).encode()
            response = service_pb2.ModelInferResponse(model_name=request.model_name)  # ty: ignore[missing-attribute]
            response.outputs.add(name="control_result", datatype="BYTES", shape=[1, 1])
            response.raw_output_contents.append(len(answer).to_bytes(4, "little") + answer)
            yield service_pb2.ModelStreamInferResponse(infer_response=response)  # ty: ignore[missing-attribute]
            if self.ends_late.is_set():
                time.sleep(0.2)
            self.were_active.append(context.is_active())


@pytest.fixture
def triton():
    servicer = FakeTriton()
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer
    server.stop(None).wait()


@pytest.fixture
def control(triton):
    with connect(Target.parse(f"grpc://127.0.0.1:{triton.port}", KEY), timeout=5) as client:
        yield client


def test_arguments_and_answer(triton, control):
    assert control.status() == {"asked": "status"}
    assert control.finish_weight_update("v2") == {"asked": "finish_weight_update"}
    assert triton.requests == [
        {"control_operation": "status", "control_arguments": "{}", "control_key": KEY},
        {
            "control_operation": "finish_weight_update",
            "control_arguments": '{"weight_version": "v2", "update_id": null}',
            "control_key": KEY,
        },
    ]


def test_a_payload_is_a_tensor_of_bytes():
    request = build_request({"control_operation": "stage_adapter", "control_payload": b"\x00\xff"})
    tensor = request.inputs[1]
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("control_payload", "UINT8", [1, 2])
    assert request.raw_input_contents[1] == b"\x00\xff"


@pytest.mark.parametrize(
    ("status", "text", "message", "kind"),
    [
        # The model's own: the code behind the message decides.
        (grpc.StatusCode.INVALID_ARGUMENT, "control_key: missing [REFUSED]", "control_key: missing", RefusedError),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "control_arguments: no [INVALID_ARG]",
            "control_arguments: no",
            InvalidError,
        ),
        (grpc.StatusCode.ALREADY_EXISTS, "updating [ALREADY_EXISTS]", "updating", ConflictError),
        (grpc.StatusCode.UNAVAILABLE, "the engine died [UNAVAILABLE]", "the engine died", UnavailableError),
        (grpc.StatusCode.INTERNAL, "oh no [INTERNAL]", "oh no", ControlError),
        # Of Triton, of gRPC or of a proxy: the status decides, whatever the words.
        (grpc.StatusCode.INVALID_ARGUMENT, "control_key: unexpected tensor", None, InvalidError),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you", None, RefusedError),
        (grpc.StatusCode.PERMISSION_DENIED, "not you", None, RefusedError),
        (grpc.StatusCode.FAILED_PRECONDITION, "not now", None, ConflictError),
        (grpc.StatusCode.UNAVAILABLE, "connection refused", None, UnavailableError),
        (grpc.StatusCode.NOT_FOUND, "unknown model", None, UnavailableError),
        (grpc.StatusCode.UNKNOWN, "oh no", None, ControlError),
        (grpc.StatusCode.INTERNAL, "Request for unknown model: 'llm' is not found", None, UnavailableError),
    ],
)
def test_errors_have_types(triton, control, status, text, message, kind):
    triton.error = (status, text)
    with pytest.raises(ControlError) as caught:
        control.start_weight_update()
    assert type(caught.value) is kind
    assert caught.value.message == (message or text)
    assert caught.value.operation == "start_weight_update"
    triton.error = None
    assert control.status() == {"asked": "status"}  # the client lives on


def test_a_server_that_never_answers(triton, control):
    triton.delay.set()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
        control.status(timeout=0.2)
    assert time.monotonic() - began < 0.9


def test_an_answered_call_is_not_cancelled(triton):
    triton.ends_late.set()
    with connect(Target.parse(f"grpc://127.0.0.1:{triton.port}", KEY), timeout=5) as client:
        began = time.monotonic()
        client.status()
        assert time.monotonic() - began < 0.19, "nor waited for"
        gc.collect()
    assert triton.were_active == [True]


def test_nobody_there():
    with connect(Target.parse("grpc://127.0.0.1:1"), timeout=5) as client, pytest.raises(UnavailableError):
        client.status()


def test_no_thread_is_left_by_calls(control):
    for _ in range(3):
        control.status()
    before = threading.active_count()
    for _ in range(20):
        control.status()
    time.sleep(0.2)
    assert threading.active_count() <= before + 1


def test_the_key_is_nowhere_to_be_read(triton, control, caplog):
    caplog.set_level(logging.DEBUG)
    triton.error = (grpc.StatusCode.INTERNAL, "oh no")
    with pytest.raises(ControlError) as caught:
        control.status()
    assert KEY not in repr(control) + repr(control.target) + repr(caught.value) + caplog.text
