"""Random requests for Triton's own ports: right ones, nearly right ones, and rubbish. A seed always makes the same."""

import json
import random
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype

from tests.stack.triton_requests import COMMON, inputs_of

MODELS = ("llm", "vllm_model")
INTEGERS = (-(2**63) - 1, -(2**63), -(2**31) - 1, -2, -1, 0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63)
NUMBERS = (*INTEGERS, 2**64, 2**70, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1.5, float("nan"), float("inf"))
TEXTS = ("", "a", "Hello there", "\0", "\ud800", "é" * 100, "🙂", " ", "\n", "<|im_end|>", "x" * 5000, "\\", '"')
# Words of vLLM's SamplingParams, and what may stand there besides any value at all.
RIGHT: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.7, 2, "0.5"),
    "top_p": (1, 0.5, "0.9"),
    "top_k": (-1, 0, 5, 10**6),
    "min_p": (0, 0.1, 1),
    "presence_penalty": (-2, 0.5, 2),
    "frequency_penalty": (0.1,),
    "repetition_penalty": (1, 1.3, 1e-3, 1e6),
    "n": (1, 2, 5),
    "seed": (0, 1, -1, 2**63 - 1, -(2**63)),
    "stop": ("a", ["a", "b"], ["x"] * 200),
    "stop_token_ids": ([1], [49151], [49152], [0, -1], list(range(2000))),
    "bad_words": (["a"], ["a b c"], ["\0"], ["a"] * 300),
    "ignore_eos": (True, False, "true"),
    "min_tokens": (0, 1, 3, 10**12),
    "logprobs": (0, 1, 5, 20, 21, -1, 10**6, True),
    "prompt_logprobs": (0, 1, 20, 10**6),
    "logprob_token_ids": ([1, 2], [49152], [-1], []),
    "prompt_logprob_token_ids": ([[1]], [[1], [2, 3]], "x"),
    "trace_decode_token_ids": ([1, 2, 3], [], [10**9]),
    "flat_logprobs": (True, False),
    "detokenize": (True, False),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (True, False),
    "logit_bias": ({"1": 5}, {"49152": 1}, {"x": 1}, {"1": "nan"}, {1: -100}),
    "allowed_token_ids": ([1, 2, 3], [], [10**9]),
    "extra_args": ({"a": 1}, {"a": 2**70}, {"kv_transfer_params": {"x": 1}}),
    "structured_outputs": (
        {"choice": ["a", "b"]},
        '{"choice": ["a"]}',
        {"regex": "a+"},
        {"regex": "("},
        {"json": {"type": "object"}},
        {"json": "{"},
        {"grammar": 'root ::= "a"'},
        {"choice": []},
        {},
    ),
    "repetition_detection": ({"max_pattern_size": 3, "min_count": 2}, {"max_pattern_size": 2**70}),
    "thinking_token_budget": (0, 5, -2, 2**70),
    "stream_interval": (1, 5, 0, 2**70),
    "routed_experts_prompt_start": (0, 3, -1),
    "output_text_buffer_length": (0, 10, -5),
    "skip_reading_prefix_cache": (True, False),
    "watermarking": (True, False),
    "lora_name": ("nobody", 3),
    "truncate_prompt_tokens": (1,),
    "output_kind": (1,),
    "heat": (1,),
}
FLAGS = (
    *("stream", "exclude_input_in_output", "return_text", "return_finish_reason", "return_cumulative_logprob"),
    *("return_logprobs", "return_num_input_tokens", "return_num_output_tokens", "return_token_ids"),
    *("return_prompt_token_ids", "return_token_logprobs", "return_prompt_token_logprobs"),
)
# Without engine_channel: such a request is answered when a front end goes.
OTHERS = (
    *("control_operation", "control_arguments", "control_key", "control_payload", "engine_request"),
    *("engine_abort", "engine_seen", "min_weight_version", "image", "text_output", "no_such_tensor"),
)
DTYPES = (np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64)


class RandomRequest(NamedTuple):
    """`body` for POST generate (or generate_stream), or `inputs` and `parameters` for gRPC."""

    model: str
    stream: bool
    body: str | None = None
    inputs: Sequence[grpcclient.InferInput] = ()
    parameters: dict[str, Any] | None = None


class RandomRequests:
    """An endless stream of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not for secrets

    def __iter__(self) -> Iterator[RandomRequest]:
        while True:
            yield self._http() if self._random.random() < 0.5 else self._grpc()

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _any(self, depth: int = 0) -> Any:
        """Any JSON value."""
        makers: list[Callable[[], Any]] = [
            lambda: self._random.choice(NUMBERS),
            lambda: self._random.choice(TEXTS),
            lambda: self._random.choice((None, True, False)),
            lambda: [self._any(depth + 1) for _ in range(self._random.randrange(4))],
            lambda: {self._random.choice(TEXTS): self._any(depth + 1) for _ in range(self._random.randrange(3))},
        ]
        return self._random.choice(makers[: 3 if depth > 3 else None])()

    def _sampling(self) -> dict[str, Any]:
        values: dict[str, Any] = {"max_tokens": self._random.randrange(1, 9)}
        if self._chance(0.05):
            values["max_tokens"] = self._random.choice((*NUMBERS, "5", "x", None))
        for name in self._random.sample(list(RIGHT), self._random.choice((0, 0, 1, 1, 2, 3))):
            values[name] = self._any() if self._chance(0.3) else self._random.choice(RIGHT[name])
        if self._chance(0.02):
            deep: Any = 1
            for _ in range(self._random.choice((70, 300))):
                deep = [deep]
            values[self._random.choice(list(RIGHT))] = deep
        return values

    def _sampling_text(self) -> str:
        text = json.dumps(self._sampling())
        if self._chance(0.1):
            cut = self._random.randrange(len(text))
            text = text[:cut] + self._random.choice(("", "}", ",", '"', "\0", "[" * 3000)) + text[cut + 1 :]
        return text

    def _token_ids(self) -> list[int]:
        ids = [self._random.randrange(49152) for _ in range(self._random.choice((0, 1, 3, 20, 300, 2047, 2048, 5000)))]
        if ids and self._chance(0.2):
            ids[self._random.randrange(len(ids))] = self._random.choice((-1, 49152, 2**31 - 1, -(2**31)))
        return ids

    def _http(self) -> RandomRequest:
        body: dict[str, Any] = {}
        if self._chance(0.7):
            body["text_input"] = self._any() if self._chance(0.1) else self._random.choice(TEXTS)
        if self._chance(0.3 if body else 0.9):
            body["input_ids"] = self._any() if self._chance(0.1) else self._token_ids()
        stream = self._chance(0.3)
        body["stream"] = stream
        for name in self._random.sample(FLAGS, self._random.randrange(4)):
            body[name] = self._any() if self._chance(0.1) else self._chance(0.5)
        if self._chance(0.5):
            body["sampling_parameters"] = self._any() if self._chance(0.1) else self._sampling_text()
        elif self._chance(0.5):
            body["parameters"] = self._sampling()
        else:
            body |= self._sampling()
        if self._chance(0.1):
            body[self._random.choice(OTHERS)] = self._any()
        text = json.dumps({**COMMON, **body})
        if self._chance(0.05):
            cut = self._random.randrange(len(text))
            text = text[:cut] + self._random.choice(string.printable) + text[cut + self._random.randrange(3) :]
        return RandomRequest(self._random.choice(MODELS), stream, body=text)

    def _grpc(self) -> RandomRequest:
        model = self._random.choice(MODELS)
        batched = (model == "llm") is not self._chance(0.05)
        inputs = inputs_of(batched=batched)
        if self._chance(0.7):
            inputs.append(self._tensor("text_input", [self._random.choice(TEXTS)], batched))
        if self._chance(0.3 if len(inputs) > len(COMMON) else 0.9):
            inputs.append(self._tensor("input_ids", np.array(self._token_ids(), np.int32), batched))
        stream = self._chance(0.3)
        inputs.append(self._tensor("stream", np.array([stream]), batched))
        flags = self._random.sample(FLAGS[1:], self._random.randrange(4))
        inputs += [self._tensor(name, np.array([self._chance(0.5)]), batched) for name in flags]
        parameters = None
        if self._chance(0.6):
            inputs.append(self._tensor("sampling_parameters", [self._sampling_text()], batched))
        elif self._chance(0.5):
            sampling = self._sampling()
            parameters = {name: value for name, value in sampling.items() if _is_parameter(value)}
        if self._chance(0.1):
            inputs.append(self._tensor(self._random.choice(OTHERS), [self._random.choice(TEXTS)], batched))
        return RandomRequest(model, stream, inputs=inputs, parameters=parameters)

    def _tensor(self, name: str, values: Any, batched: bool) -> grpcclient.InferInput:
        """The tensor of these values; sometimes one of another shape, of another type, or of random bytes."""
        if isinstance(values, list):
            values = np.array([text.encode("utf-8", "surrogatepass") for text in values], dtype=np.object_)
        array: np.ndarray = values[np.newaxis] if batched else values
        if self._chance(0.05):
            shape = [self._random.randrange(4) for _ in range(self._random.randrange(4))]
            if self._chance(0.5):
                array = np.zeros(shape, self._random.choice(DTYPES))
            else:
                array = np.full(shape, self._random.randbytes(5), dtype=np.object_)
        tensor = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        if self._chance(0.02):
            tensor._raw_content = self._random.randbytes(self._random.randrange(40))
        return tensor


def _is_parameter(value: Any) -> bool:
    """Whether gRPC carries the value as a request parameter."""
    if isinstance(value, bool) or (isinstance(value, str) and value.isascii()):
        return True
    return isinstance(value, int) and -(2**63) <= value < 2**63
