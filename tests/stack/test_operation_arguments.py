"""Control operations with random arguments, straight to Triton: refused by name, and the engine lives on.

TRITONLIVE_FUZZ_CALLS is the number of calls of each operation.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.answers import complete
from tritonlive.launch import Stack
from tritonlive.triton_messages import build_request
from tritonlive.wire.error_codes import ErrorCode, decode_error
from tritonlive.wire.operation import Operation
from tritonlive.wire.operations import OPERATIONS
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS, CONTROL_KEY, CONTROL_OPERATION, CONTROL_PAYLOAD
from tritonlive.wire.triton_tensors import read_contents

from .conftest import MODEL

NUM_CALLS = int(os.environ.get("TRITONLIVE_FUZZ_CALLS", "30"))
SEED = 20261130
Call = Callable[..., tuple[ErrorCode | None, str]]
"""The operation's name, and its arguments as JSON text or by name; returns code and message, or None and the result."""

# As JSON texts, for some are values that Python's own encoder would not write.
VALUES = [
    *("null", "true", "false", "0", "1", "2", "-1", "99", "0.5", "1e308", "1e999", "NaN", "-Infinity", "9" * 400),
    *('""', '"x"', '"v7"', '" v"', '"v "', '"a\\nb"', '"a\\r\\nx-evil: 1"', '"\\u0000"', '"\\ud800"', '"\\u00fc"'),
    *('"keep"', '"abort"', '"wait"', '"' + "v" * 200 + '"', '"' + "v" * 201 + '"', '"' + "v" * 2**20 + '"'),
    *("[]", "[1]", "[[1, 2]]", "[[1, -2]]", "[[1, 999999]]", '["weights"]', '["x"]', "[" * 2000 + "]" * 2000),
    *("{}", '{"a": 1}', '{"names": ["w"], "shapes": [[1]], "dtype_names": ["float32"]}', '{"holder": 5}'),
    *('{"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 2}', '{"lease_s": "x"}'),
]
REFUSALS = {
    ErrorCode.INVALID,
    ErrorCode.NOT_FOUND,
    ErrorCode.CONFLICT,
    ErrorCode.UNAVAILABLE,
    ErrorCode.UNSUPPORTED,
}


@pytest.fixture(scope="module")
def stub(stack: Stack) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(stack.grpc_url, options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def call(stack: Stack, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    def run(operation: str, text: str | None = None, /, **arguments: Any) -> tuple[ErrorCode | None, str]:
        tensors: dict[str, str | bytes] = {
            CONTROL_OPERATION: operation,
            CONTROL_ARGUMENTS: json.dumps(arguments) if text is None else text,
            CONTROL_KEY: stack.control_key,
        }
        if OPERATIONS[operation].has_payload:
            tensors[CONTROL_PAYLOAD] = b"\x08\0\0\0\0\0\0\0{}      "
        # To its end: Triton 2.51 keeps a stream that its client cancels, and then waits 30 s for it when it stops.
        (answer,) = stub.ModelStreamInfer(iter([build_request(tensors, "1")]), timeout=120)
        if answer.error_message:
            message, code = decode_error(answer.error_message)
            assert code is not None, message
            return code, message
        return None, read_contents(answer.infer_response)["control_result"][4:].decode()

    return run


@pytest.fixture(autouse=True)
def _weights_stay(stack: Stack, call: Call) -> Iterator[None]:
    """Requires the same engine afterwards, and the same weights once it has been told to serve its checkpoint."""
    text, _ = complete(stack, 60)
    engines = stack.engine_core_pids
    yield
    for operation, arguments in (
        ("abort_weight_update", {"force": True}),
        ("wake_up", {}),
        ("resume_generation", {}),
        ("reload", {}),
        ("update_weight_version", {"new_version": "default"}),
    ):
        assert call(operation, **arguments)[0] is None, operation
    assert stack.engine_core_pids == engines, "the engine has been restarted"
    assert complete(stack, 60) == (text, "default")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.frontend_url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def random_arguments(operation: Operation, chance: random.Random) -> str:
    """A JSON object with most of the operation's arguments, and at times one that it does not have."""
    names = [field.name for field in msgspec.structs.fields(operation.arguments) if chance.random() < 0.8]
    if chance.random() < 0.1:
        names.append(chance.choice(["unknown", "holder", "self", "__class__"]))
    return "{" + ", ".join(f'"{name}": {chance.choice(VALUES)}' for name in names) + "}"


@pytest.mark.row(40)
def test_random_arguments_of_every_operation(stack: Stack, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)  # noqa: S311 - not for secrets
    outcomes: Counter[str] = Counter()
    wrong: list[tuple[str, str, str]] = []
    for name, operation in OPERATIONS.items():
        for _ in range(NUM_CALLS):
            text = random_arguments(operation, chance)
            code, message = call(name, text)
            outcomes[code or "done"] += 1
            if code is not None and code not in REFUSALS:
                wrong.append((name, text[:200], message[:300]))
    with capsys.disabled():
        print(f"\n{sum(outcomes.values())} calls of {len(OPERATIONS)} operations: {dict(outcomes)}")  # noqa: T201
    assert wrong == []
    assert outcomes["done"] > 0, "nothing got through: the arguments are too wild to test more than the parser"


@pytest.mark.row(40)
@pytest.mark.parametrize(
    "version",
    ["5", '""', "null", '" v"', '"v\\n"', '"a\\r\\nx: y"', '"\\u0000"', '"\\u00fc"', '"' + "v" * 2**20 + '"', '["v"]'],
    ids=lambda text: text[:12],
)
def test_a_version_is_a_name_that_a_header_can_carry(call: Call, version: str) -> None:
    before = call("get_weight_version")
    code, message = call("update_weight_version", f'{{"new_version": {version}}}')
    assert code is ErrorCode.INVALID
    assert message.startswith("control_arguments: of update_weight_version: ")
    assert "$.new_version" in message
    assert len(message) < 500
    assert call("get_weight_version") == before


@pytest.mark.row(40)
@pytest.mark.parametrize(
    ("operation", "arguments", "named"),
    [
        ("sleep", {"level": 99}, "level"),
        ("sleep", {"level": -1}, "level"),
        ("wake_up", {"tags": ["x"]}, "tags"),
        ("score", {"prompts": [[1, 2**31]]}, "prompts"),
        ("score", {"prompts": [[1, -1]]}, "prompts"),
        ("add_lora", {"lora_name": "a", "lora_int_id": 2**64, "lora_path": "/x"}, "lora_int_id"),
        ("add_lora", {"lora_name": "a", "lora_int_id": 1, "lora_path": ""}, "lora_path"),
        ("start_weight_update", {"update_id": "x" * 201}, "update_id"),
        ("finish_weight_update", {"weight_version": "é"}, "weight_version"),
        ("status", {"holder": ["x"]}, "holder"),
    ],
)
def test_an_argument_out_of_range_is_named(call: Call, operation: str, arguments: dict[str, Any], named: str) -> None:
    code, message = call(operation, **arguments)
    assert code is ErrorCode.INVALID
    assert named in message
    assert message.startswith("control_arguments: ")
