"""Facts about the engine in Triton, which a front end needs to build its serving layer."""

import json
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tritonlive.wire.limits import MAX_BATCH
from tritonlive.wire.operations.engine import Describe
from tritonlive.wire.tensor_names import CONTROL_OPERATION, CONTROL_RESULT, MODEL, missing_tensors

POLL_INTERVAL_S = 0.5
ANSWER_TIMEOUT_S = 10.0


class IncompatibleServer(Exception):
    """This front end cannot serve that Triton server. The message says what to change."""


@dataclass(frozen=True)
class EngineInfo:
    """Those fields of the `describe` operation's answer that the front end needs."""

    vllm_version: str
    engine_argv: list[str]
    model: str
    served_model_name: list[str]
    supported_tasks: list[str]
    max_model_len: int
    num_gpu_blocks: int | None
    block_size: int
    kv_cache_size_tokens: int | None
    world_size: int
    world_size_across_dp: int

    @classmethod
    def parse(cls, text: str) -> "EngineInfo":
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "EngineInfo":
        """Raises IncompatibleServer if the answer lacks a field, because the server has another version."""
        try:
            return cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise IncompatibleServer(f"its description lacks {error}: it has another version") from None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def difference(self, other: "EngineInfo") -> str | None:
        """None if a serving layer for this engine can serve `other`, too; else a sentence with the reason."""
        for name in ("vllm_version", "model", "served_model_name", "supported_tasks", "max_model_len"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"its {name} is {its!r}, and this front end was started for {mine!r}"
        return None


def fetch(url: str) -> EngineInfo | None:
    """Describe the model at `url` (host:port of Triton's gRPC endpoint); None while it is not ready.

    Raises IncompatibleServer if the server's model is not tritonlive's.
    """
    client = triton.InferenceServerClient(url)
    try:
        if not client.is_model_ready(MODEL, client_timeout=ANSWER_TIMEOUT_S):
            return None
        check_contract(client.get_model_config(MODEL, client_timeout=ANSWER_TIMEOUT_S).config)
        return describe(client)
    except (InferenceServerException, queue.Empty):
        return None
    finally:
        client.close()


def wait(urls: Sequence[str], timeout_s: float | None, say: Callable[[str], None]) -> EngineInfo:
    """Poll until the model at one of `urls` answers. If several answer, the first one counts.

    Raises TimeoutError after `timeout_s`, IncompatibleServer if all servers have another model.
    """
    started = time.monotonic()
    is_said = False
    while True:
        refused: dict[str, IncompatibleServer] = {}
        for url in urls:
            try:
                if (info := fetch(url)) is not None:
                    return info
            except IncompatibleServer as error:
                refused[url] = error
        if len(refused) == len(urls):
            raise next(iter(refused.values()))
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            raise TimeoutError(f"no model {MODEL!r} ready at {', '.join(urls)} within {timeout_s:.0f} s")
        if not is_said:
            say(f"waiting for the model {MODEL!r} of the Triton server at {' or '.join(urls)}")
            is_said = True
        time.sleep(POLL_INTERVAL_S)


def describe(client: triton.InferenceServerClient) -> EngineInfo:
    answers: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    operation = triton.InferInput(CONTROL_OPERATION, [1, 1], "BYTES")
    operation.set_data_from_numpy(np.array([[Describe.operation.name.encode()]], dtype=np.object_))
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        client.async_stream_infer(MODEL, [operation])
        result, error = answers.get(timeout=ANSWER_TIMEOUT_S)
    finally:
        client.stop_stream(cancel_requests=True)
    if error is not None or result is None:
        raise error or queue.Empty
    return EngineInfo.parse(result.as_numpy(CONTROL_RESULT).item())


def check_contract(config: Any) -> None:
    """Raises IncompatibleServer if the model's configuration does not meet the needs of a front end."""
    if missing := missing_tensors((tensor.name for tensor in config.input), (tensor.name for tensor in config.output)):
        raise IncompatibleServer(
            f"the model {MODEL!r} of this Triton server lacks the tensors {', '.join(missing)}: it is not tritonlive's "
            "model_repository/llm, or has another version"
        )
    if config.max_batch_size < MAX_BATCH:
        raise IncompatibleServer(
            f"the model {MODEL!r} of this Triton server has a max_batch_size of {config.max_batch_size}: set it to "
            f"{MAX_BATCH} or more, because one request may carry that many generations"
        )
