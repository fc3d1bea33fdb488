"""Rollouts as arrays, against servers that answer like Triton's model."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sync import (
    ConflictError,
    ControlError,
    DeadlineError,
    InvalidError,
    RefusedError,
    Rollouts,
    TargetError,
    UnavailableError,
)
from sync.rollouts.batches import RolloutBatch, WeightSpan

VERSIONS = '[{"version": "v1", "start": 0, "end": 2}]'


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Gives each prompt its own tokens back, n times, the last prompt's answer first."""

    def __init__(self) -> None:
        self.port = 0
        self.params: list[dict[str, Any]] = []
        self.names: list[set[str]] = []
        self.keys: list[str | None] = []
        self.prompts: list[list[int]] = []
        self.error: str | None = None
        self.hangs = False
        self.began, self.ended = threading.Event(), threading.Event()
        self.build: Callable[..., Any] = answer_to

    def ModelStreamInfer(self, request_iterator, context):  # noqa: N802 - generated
        assert "triton_grpc_error" not in dict(context.invocation_metadata()), "Triton may crash of it"
        context.add_callback(self.ended.set)
        self.began.set()
        responses = [self.take(request) for request in request_iterator]
        if self.error is not None:
            # Triton's default: it sends an error message, and the stream continues.
            yield service_pb2.ModelStreamInferResponse(error_message=self.error)  # ty: ignore[missing-attribute]
        if self.hangs:
            self.ended.wait(30)
        yield from reversed(responses)

    def take(self, request: Any) -> Any:
        raw = dict(zip([tensor.name for tensor in request.inputs], request.raw_input_contents, strict=True))
        assert raw.pop("return_text") == b"\0"
        self.prompts.append(np.frombuffer(raw.pop("input_ids"), np.int32).tolist())
        self.params.append(json.loads(raw.pop("sampling_parameters")[4:]))
        self.keys.append(raw["api_key"][4:].decode() if "api_key" in raw else None)
        self.names.append(set(raw))
        return self.build(request.id, self.prompts[-1], self.params[-1])

    @property
    def target(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


def answer_to(request_id: str, prompt: list[int], params: dict[str, Any]) -> Any:
    n = params.get("n", 1)
    width = 1 + len(prompt) % 2
    response = service_pb2.ModelInferResponse(id=request_id)  # ty: ignore[missing-attribute] - generated
    add(response, "num_output_tokens", "UINT32", np.full(n, len(prompt), np.uint32))
    add(response, "token_ids", "INT32", np.array(prompt * n, np.int32))
    add(response, "token_logprobs", "FP32", -np.array(prompt * n, np.float32))
    add(response, "top_token_ids", "INT32", np.full((len(prompt) * n, width), 3, np.int32))
    add(response, "top_logprobs", "FP32", np.full((len(prompt) * n, width), -0.5, np.float32))
    add(response, "prompt_token_logprobs", "FP32", -np.array(prompt[1:], np.float32))
    add(response, "prompt_top_token_ids", "INT32", np.full((len(prompt) - 1, 2), 4, np.int32))
    add(response, "prompt_top_logprobs", "FP32", np.full((len(prompt) - 1, 2), -1.5, np.float32))
    add(response, "finish_reason", "BYTES", ["length"] * n)
    add(response, "weight_version", "BYTES", ["v1"])
    add(response, "weight_version_spans", "BYTES", [VERSIONS] * n)
    return service_pb2.ModelStreamInferResponse(infer_response=response)  # ty: ignore[missing-attribute] - generated


def add(response: Any, name: str, datatype: str, values: np.ndarray | list[str]) -> None:
    if isinstance(values, np.ndarray):
        shape, raw = values.shape, values.tobytes()
    else:
        shape, raw = (len(values),), b"".join(len(v).to_bytes(4, "little") + v.encode() for v in values)
    response.outputs.add(name=name, datatype=datatype, shape=[1, *shape])
    response.raw_output_contents.append(raw)


@pytest.fixture
def tritons() -> Iterator[list[FakeTriton]]:
    servicers, servers = [FakeTriton(), FakeTriton()], []
    for servicer in servicers:
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        servicer.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
    yield servicers
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def triton(tritons: list[FakeTriton]) -> FakeTriton:
    return tritons[0]


@pytest.fixture
def rollouts(triton: FakeTriton) -> Iterator[Rollouts]:
    with Rollouts(triton.target, timeout=10) as client:
        yield client


def test_sequences_come_flat_and_in_the_prompts_order(triton: FakeTriton, rollouts: Rollouts) -> None:
    batch = rollouts.generate([[5, 6], np.array([7, 8, 9])], n=2, max_tokens=4, temperature=0.5, logprobs=1)
    assert batch.token_ids.tolist() == [5, 6, 5, 6, 7, 8, 9, 7, 8, 9]
    assert batch.lengths.tolist() == [[2, 2], [3, 3]]
    assert batch.offsets.tolist() == [0, 2, 4, 7, 10]
    assert batch.logprobs is not None
    assert batch.logprobs.tolist() == [-5, -6, -5, -6, -7, -8, -9, -7, -8, -9]
    assert batch.top_token_ids is not None
    assert batch.top_logprobs is not None
    assert batch.top_token_ids.tolist() == [[3, -1]] * 4 + [[3, 3]] * 6
    assert batch.top_logprobs.tolist() == [[-0.5, -np.inf]] * 4 + [[-0.5, -0.5]] * 6
    arrays = (batch.token_ids, batch.lengths, batch.logprobs, batch.top_token_ids, batch.top_logprobs)
    assert [str(array.dtype) for array in arrays] == ["int32", "int32", "float32", "int32", "float32"]
    assert batch.finish_reasons == [["length"] * 2] * 2
    assert batch.weight_versions == [[[WeightSpan("v1", 0, 2)]] * 2] * 2
    assert triton.params == [{"n": 2, "max_tokens": 4, "temperature": 0.5, "logprobs": 1}] * 2


def test_without_logprobs(triton: FakeTriton, rollouts: Rollouts) -> None:
    batch = rollouts.generate([[5, 6]], logprobs=None)
    assert batch.logprobs is batch.top_token_ids is batch.top_logprobs is batch.padded().logprobs is None
    assert set(batch.torch()) == {"token_ids", "lengths"}
    assert "return_token_logprobs" not in triton.names[0]


def test_padded(rollouts: Rollouts) -> None:
    padded = rollouts.generate([[5, 6], [7, 8, 9]]).padded(pad_token_id=1)
    assert padded.token_ids.tolist() == [[5, 6, 1], [7, 8, 9]]
    assert padded.mask.tolist() == [[True, True, False], [True] * 3]
    assert padded.logprobs is not None
    assert padded.logprobs.tolist() == [[-5, -6, 0], [-7, -8, -9]]


def test_nothing_generated_can_be_padded() -> None:
    empty = RolloutBatch(
        np.zeros(0, np.int32), np.zeros((1, 2), np.int32), None, None, None, [["abort"] * 2], [[[], []]]
    )
    assert empty.padded().token_ids.shape == (2, 0)


def test_tensors_share_the_arrays_memory(rollouts: Rollouts) -> None:
    batch = rollouts.generate([[5, 6]])
    tensors = batch.torch()
    assert tensors["token_ids"].dtype == torch.int32
    tensors["token_ids"][0] = 77
    assert batch.token_ids[0] == 77


def test_scores(triton: FakeTriton, rollouts: Rollouts) -> None:
    scores = rollouts.score([[5, 6], torch.tensor([7, 8, 9])], top_k=2)
    assert scores.logprobs.tolist() == [-6, -8, -9]
    assert scores.lengths.tolist() == [1, 2]
    assert scores.offsets.tolist() == [0, 1, 3]
    assert scores.top_token_ids.tolist() == [[4, 4]] * 3
    assert scores.top_logprobs.tolist() == [[-1.5, -1.5]] * 3
    assert scores.weight_versions == ["v1", "v1"]
    assert triton.params == [{"max_tokens": 1, "prompt_logprobs": 2}] * 2
    assert set(scores.torch()) == {"lengths", "logprobs", "top_token_ids", "top_logprobs"}


def test_a_sequence_that_was_aborted_has_no_score(triton: FakeTriton, rollouts: Rollouts) -> None:
    triton.build = lambda request_id, prompt, params: answer_to(request_id, prompt[:1], params)
    with pytest.raises(ControlError, match="sequence 0 ended with 'length'"):
        rollouts.score([[5, 6]])


def test_each_target_is_shown_its_key(tritons: list[FakeTriton], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONLIVE_API_KEY", "first,second")
    one, other = tritons
    with Rollouts([one.target, other.target.replace("//", "//user:own@")], timeout=10) as rollouts:
        rollouts.generate([[5], [6], [7]])
    with Rollouts(one.target, api_key="given", timeout=10) as rollouts:
        rollouts.generate([[5]])
    monkeypatch.delenv("TRITONLIVE_API_KEY")
    with Rollouts(one.target, timeout=10) as rollouts:
        rollouts.generate([[5]])
    assert (one.keys, other.keys) == (["first", "first", "given", None], ["own"])


def test_prompts_are_spread_over_targets(tritons: list[FakeTriton]) -> None:
    prompts = [[number, 50] for number in range(5)]
    with Rollouts([triton.target for triton in tritons], timeout=10) as rollouts:
        batch = rollouts.generate(prompts)
        assert rollouts.generate([[7, 8]]).token_ids.tolist() == [7, 8]
    assert batch.token_ids.reshape(-1, 2).tolist() == prompts
    assert [len(triton.prompts) for triton in tritons] == [4, 2]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("input_ids: no [INVALID_ARG]", InvalidError),
        ("min_weight_version: older [ALREADY_EXISTS]", ConflictError),
        ("engine: died [UNAVAILABLE]", UnavailableError),
        ("api_key: missing or wrong [UNAUTHENTICATED]", RefusedError),
        ("Request for unknown model: 'llm' is not found", UnavailableError),
        ("oh no [INTERNAL]", ControlError),
        ("unexpected shape", ControlError),
    ],
)
def test_errors_have_types(triton: FakeTriton, rollouts: Rollouts, message: str, kind: type[ControlError]) -> None:
    triton.error = message
    with pytest.raises(ControlError) as caught:
        rollouts.generate([[1, 2]], min_weight_version="v9")
    assert type(caught.value) is kind
    assert str(caught.value) == f"{triton.target}: generate: {message.partition(' [')[0]}"
    assert "min_weight_version" in triton.names[0]
    triton.error = None
    assert rollouts.generate([[1, 2]]).token_ids.tolist() == [1, 2]  # the client lives on


def test_one_replica_that_fails_ends_the_call_everywhere(tritons: list[FakeTriton]) -> None:
    tritons[0].error = "engine: died [UNAVAILABLE]"
    tritons[0].build = lambda *_: tritons[1].began.wait(10)
    tritons[1].hangs = True
    with Rollouts([triton.target for triton in tritons], timeout=20) as rollouts:
        with pytest.raises(UnavailableError, match=str(tritons[0].port)):
            rollouts.generate([[1, 2], [3, 4]])
    assert tritons[1].ended.wait(5)


def test_the_deadline_ends_the_call_at_the_server_too(triton: FakeTriton, rollouts: Rollouts) -> None:
    triton.hangs = True
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"generate: no answer within 0\.3 s"):
        rollouts.generate([[1, 2]], timeout=0.3)
    assert time.monotonic() - began < 2
    assert triton.ended.wait(5)


def test_a_server_that_says_too_little(triton: FakeTriton, rollouts: Rollouts) -> None:
    silent = service_pb2.ModelStreamInferResponse()  # ty: ignore[missing-attribute] - generated
    silent.infer_response.id = "0"
    triton.build = lambda *_: silent
    with pytest.raises(ControlError, match="without all answers"):
        rollouts.generate([[1, 2], [3, 4]])


@pytest.mark.parametrize("prompts", [[], [[]], [["a"]], [[1.5]], [[[1]]], [[True]], [[-1]], [[2**31]], [3]], ids=str)
def test_what_is_no_prompt_is_named_before_anything_is_sent(
    triton: FakeTriton, rollouts: Rollouts, prompts: list[Any]
) -> None:
    with pytest.raises(ValueError, match="prompt"):
        rollouts.generate(prompts)
    assert triton.prompts == []


def test_targets() -> None:
    with pytest.raises(TargetError, match="grpc://host:8001"):
        Rollouts("http://127.0.0.1:9000")
    with pytest.raises(TargetError, match="at least one"):
        Rollouts([])
    with Rollouts("grpc://127.0.0.1:1", timeout=5) as nobody, pytest.raises(UnavailableError):
        nobody.generate([[1]])
