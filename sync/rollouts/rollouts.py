"""Rollouts and scores as arrays, directly from Triton: only the sampling parameters are JSON.

    with Rollouts("grpc://127.0.0.1:8001") as rollouts:
        batch = rollouts.generate(prompts, n=8, max_tokens=64, temperature=1.0)
        batch.token_ids, batch.lengths, batch.logprobs  # numpy; batch.torch() for tensors
        scores = rollouts.score(sequences, top_k=100)

A call has one gRPC stream to each replica, with one request for each prompt. The end of the call, an error included,
ends the streams; Triton and the engine then abort requests that still run.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike
from tritonclient.grpc import service_pb2_grpc

from sync.closing import Closing
from sync.control.control_errors import triton_error
from sync.control.grpc_control import AnsweredCalls, open_channel, typed
from sync.control.target import Target
from sync.errors import ControlError, TargetError
from tritonlive.triton_messages import build_request
from tritonlive.wire import tensor_names
from tritonlive.wire.environment import API_KEY_VARIABLE
from tritonlive.wire.keys import split_keys
from tritonlive.wire.triton_tensors import read_arrays, read_texts

from .batches import RolloutBatch, Scores, read_spans, stack_rows

DEFAULT_TIMEOUT_S = 600.0

Prompts = Sequence[ArrayLike]
"""Token ids of each prompt: a list, or a one-dimensional integer array or CPU tensor."""


class Rollouts(Closing):
    """Generates from token ids at one or several replicas; prompts are spread evenly.

    targets: Triton's gRPC addresses, `grpc://127.0.0.1:8001`. An address may contain the key (`grpc://user:key@host`).
    api_key: key for inference, or the control key; by default the first of $TRITONLIVE_API_KEY.
    timeout: seconds that a call may take; a call can override it.

    Methods are thread-safe. They raise DeadlineError; InvalidError with the name of an argument that the model does not
    accept; ConflictError when the weights are older than requested, or the replica does not serve; UnavailableError
    when no server answers, or the engine died; RefusedError when the server wants another key; ValueError for prompts
    that are no token ids. One failed prompt fails the call. The constructor raises TargetError.
    """

    def __init__(
        self, targets: str | Sequence[str], *, api_key: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        addresses = [targets] if isinstance(targets, str) else targets
        key = api_key or next(iter(split_keys(os.environ.get(API_KEY_VARIABLE))), None)
        self.targets = tuple(Target.parse(address, key) for address in addresses)
        if not self.targets:
            raise TargetError("targets: give at least one, for example grpc://127.0.0.1:8001")
        for target in self.targets:
            if not target.is_grpc:
                raise TargetError(f"target {target}: rollouts need Triton's gRPC address, grpc://host:8001")
        self.timeout = timeout
        self._channels = [open_channel(target) for target in self.targets]
        self._answered = AnsweredCalls()
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]

    def generate(
        self,
        prompts: Prompts,
        *,
        n: int = 1,
        logprobs: int | None = 0,
        min_weight_version: str | None = None,
        timeout: float | None = None,
        **sampling_params: Any,
    ) -> RolloutBatch:
        """n sequences for each prompt.

        logprobs: 0 for the sampled tokens only, N for the N likeliest tokens too, None for none.
        min_weight_version: refuse (ConflictError) older weights; see config.pbtxt for the order of versions.
        sampling_params: other fields of vLLM's SamplingParams; no stop strings, because they need text.
        """
        params = {**sampling_params, "n": n, "logprobs": logprobs}
        wants = [tensor_names.FINISH_REASON, tensor_names.TOKEN_IDS]
        if logprobs is not None:
            wants.append(tensor_names.TOKEN_LOGPROBS)
        requests = self._build_requests(as_token_ids(prompts), params, wants, min_weight_version)
        return to_batch(self._run("generate", requests, timeout), has_logprobs=logprobs is not None)

    def score(
        self,
        sequences: Prompts,
        *,
        top_k: int = 0,
        min_weight_version: str | None = None,
        timeout: float | None = None,
        **sampling_params: Any,
    ) -> Scores:
        """Logprobs of all tokens of given sequences except the first, and of the top_k likeliest at each position.

        Sequences must be shorter than the server's --max-model-len: vLLM generates one token, which is discarded. top_k
        is limited by the server's --max-logprobs.
        """
        params = {**sampling_params, "max_tokens": 1, "prompt_logprobs": top_k}
        wants = (tensor_names.FINISH_REASON, tensor_names.PROMPT_TOKEN_LOGPROBS)
        arrays = as_token_ids(sequences)
        answers = self._run("score", self._build_requests(arrays, params, wants, min_weight_version), timeout)
        scores = to_scores(answers)
        for index, (array, rows) in enumerate(zip(arrays, scores.lengths, strict=True)):
            if rows != array.size - 1:  # a push with in_flight="abort" ended it
                reason = read_texts(answers[index])[tensor_names.FINISH_REASON][0]
                raise ControlError(str(self._target_of(index)), "score", f"sequence {index} ended with {reason!r}")
        return scores

    def close(self) -> None:
        """Close the connections."""
        self._answered.wait()
        for channel in self._channels:
            channel.close()

    def __repr__(self) -> str:
        return f"Rollouts({', '.join(map(str, self.targets))})"

    def _target_of(self, index: int) -> Target:
        return self.targets[index % len(self.targets)]

    def _build_requests(
        self,
        prompts: Sequence[np.ndarray],
        params: dict[str, Any],
        wants: Sequence[str],
        min_weight_version: str | None,
    ) -> list[Any]:
        """One request for each prompt; its id is the prompt's number."""
        tensors: dict[str, Any] = {
            tensor_names.SAMPLING_PARAMETERS: json.dumps(params),
            tensor_names.RETURN_TEXT: False,
        }
        tensors |= {f"return_{name}": True for name in wants}
        if min_weight_version is not None:
            tensors[tensor_names.MIN_WEIGHT_VERSION] = min_weight_version
        requests = []
        for number, ids in enumerate(prompts):
            key = self._target_of(number).key
            own = {tensor_names.INPUT_IDS: ids} | ({tensor_names.API_KEY: key} if key else {})
            requests.append(build_request(tensors | own, str(number)))
        return requests

    def _run(self, operation: str, requests: list[Any], timeout: float | None) -> list[Any]:
        """The answers, in the order of the requests."""
        seconds = self.timeout if timeout is None else timeout
        shares = [requests[first :: len(self.targets)] for first in range(len(self.targets))]
        streams = [
            stub.ModelStreamInfer(iter(share), timeout=seconds) for stub, share in zip(self._stubs, shares, strict=True)
        ]
        answers: dict[int, Any] = {}
        try:
            # Read one after the other: all replicas generate in parallel, and early answers wait in their streams.
            for target, stream, share in zip(self.targets, streams, shares, strict=True):
                try:
                    answers |= read_stream(target, operation, stream, len(share))
                except grpc.RpcError as error:
                    raise typed(target, operation, error, seconds) from None
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        for stream in streams:
            self._answered.add(stream)
        return [answers[index] for index in range(len(requests))]


def read_stream(target: Target, operation: str, stream: Any, num_answers: int) -> dict[int, Any]:
    """The stream's answers, by the number of their request. Raises grpc.RpcError, ControlError."""
    answers: dict[int, Any] = {}
    while len(answers) < num_answers:
        response = next(stream, None)
        if response is None:
            raise ControlError(str(target), operation, "the server ended the call without all answers")
        if response.error_message:
            # The message has its code. Triton would end the stream with a status, if asked by the header that
            # grpc_control.py sends; but Triton 2.51 crashes if other requests of that stream are still running.
            raise triton_error(target, operation, response.error_message)
        answers[int(response.infer_response.id)] = response.infer_response
    return answers


def as_token_ids(prompts: Prompts) -> list[np.ndarray]:
    """The prompts as int32 arrays. Raises ValueError with the number of an invalid prompt."""
    arrays = [np.asarray(prompt) for prompt in prompts]
    if not arrays:
        raise ValueError("prompts: give at least one")
    for number, array in enumerate(arrays):
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise ValueError(f"prompt {number}: expected token ids, one or more integers in one dimension")
        if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
            raise ValueError(f"prompt {number}: token ids must be 0 to {np.iinfo(np.int32).max}")
    return [array.astype(np.int32, copy=False) for array in arrays]


def to_batch(answers: Sequence[Any], *, has_logprobs: bool) -> RolloutBatch:
    arrays = [read_arrays(answer) for answer in answers]
    texts = [read_texts(answer) for answer in answers]
    spans = [each.get(tensor_names.WEIGHT_VERSION_SPANS, ()) for each in texts]
    top_ids = [each[tensor_names.TOP_TOKEN_IDS] for each in arrays] if has_logprobs else None
    top_logprobs = [each[tensor_names.TOP_LOGPROBS] for each in arrays] if has_logprobs else None
    return RolloutBatch(
        token_ids=np.concatenate([each[tensor_names.TOKEN_IDS] for each in arrays]),
        lengths=np.stack([each[tensor_names.NUM_OUTPUT_TOKENS] for each in arrays]).astype(np.int32),
        logprobs=np.concatenate([each[tensor_names.TOKEN_LOGPROBS] for each in arrays]) if has_logprobs else None,
        top_token_ids=None if top_ids is None else stack_rows(top_ids, -1),
        top_logprobs=None if top_logprobs is None else stack_rows(top_logprobs, -np.inf),
        finish_reasons=[each[tensor_names.FINISH_REASON] for each in texts],
        weight_versions=[[read_spans(text) for text in each] for each in spans],
    )


def to_scores(answers: Sequence[Any]) -> Scores:
    arrays = [read_arrays(answer) for answer in answers]
    return Scores(
        lengths=np.array([each[tensor_names.PROMPT_TOKEN_LOGPROBS].size for each in arrays], np.int32),
        logprobs=np.concatenate([each[tensor_names.PROMPT_TOKEN_LOGPROBS] for each in arrays]),
        top_token_ids=stack_rows([each[tensor_names.PROMPT_TOP_TOKEN_IDS] for each in arrays], -1),
        top_logprobs=stack_rows([each[tensor_names.PROMPT_TOP_LOGPROBS] for each in arrays], -np.inf),
        weight_versions=[read_texts(answer).get(tensor_names.WEIGHT_VERSION, [""])[0] for answer in answers],
    )
