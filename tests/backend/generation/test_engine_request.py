"""EngineCoreRequests from a front end: invalid ones are refused before the engine sees them."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.pooling_params import LateInteractionParams, PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from tritonlive.backend.generation.engine_request import check_engine_request
from tritonlive.backend.tensors import BadTensor

LATE = LateInteractionParams(mode="score_doc", query_key="")


class Llm:
    """AsyncLLM, its input processor and its renderer in one; `refuses` names the check that fails."""

    def __init__(self, refuses: str | None = None) -> None:
        self.input_processor = self.renderer = self
        self.model_config = SimpleNamespace(enable_prompt_embeds=False)
        self.checks: list[tuple[str, Any]] = []
        self._refuses = refuses

    def _check(self, name: str, value: Any) -> None:
        self.checks.append((name, value))
        if name == self._refuses:
            raise ValueError(f"{name} refused")

    def _validate_params(self, params: SamplingParams | PoolingParams, supported_tasks: tuple[str, ...]) -> None:
        self._check("params", supported_tasks)

    def _validate_lora(self, lora_request: LoRARequest | None) -> None:
        self._check("lora", lora_request)

    def _validate_prompt_len(self, prompt_len: int, prompt_type: str) -> None:
        self._check("length", (prompt_len, prompt_type))

    def validate_token_ids(self, token_ids: list[int]) -> None:
        self._check("ids", token_ids)


def engine(llm: Llm) -> Any:
    return SimpleNamespace(llm=llm, supported_tasks=("generate",))


def request(**options: Any) -> EngineCoreRequest:
    values: dict[str, Any] = {"ids": [1, 2], "params": SamplingParams(max_tokens=4)} | options
    made = EngineCoreRequest("r", values.pop("ids"), None, values.pop("params"), None, 0.0, None, None, None)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_a_good_one_passes_all_of_vllms_checks() -> None:
    llm, good = Llm(), request()
    assert check_engine_request(engine(llm), good) is good.sampling_params
    assert llm.checks == [("params", ("generate",)), ("lora", None), ("length", (2, "decoder")), ("ids", [1, 2])]


def test_one_that_pools_passes_the_same_checks() -> None:
    llm, good = Llm(), request(params=None, pooling_params=PoolingParams(task="embed"))
    assert check_engine_request(engine(llm), good) is good.pooling_params
    assert [name for name, _ in llm.checks] == ["params", "lora", "length", "ids"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"params": None}, "needs either sampling_params or pooling_params"),
        ({"pooling_params": PoolingParams()}, "needs either sampling_params or pooling_params"),
        ({"params": None, "pooling_params": PoolingParams(late_interaction_params=LATE)}, "late_interaction_params"),
        ({"params": None, "pooling_params": PoolingParams(extra_kwargs={"a": 1})}, "late_interaction_params"),
        ({"params": SamplingParams(max_tokens=None)}, "lacks max_tokens in its sampling_params"),
        ({"resumable": True}, "resumable and abort_immediately are not served"),
        ({"abort_immediately": True}, "resumable and abort_immediately are not served"),
        ({"prompt_embeds": "anything"}, "prompt_embeds are off"),
        ({"ids": None}, "lacks prompt_token_ids"),
    ],
)
def test_what_would_harm_the_engine_is_refused(options: dict[str, Any], problem: str) -> None:
    llm = Llm()
    with pytest.raises(BadTensor, match=f"engine_request: {problem}"):
        check_engine_request(engine(llm), request(**options))
    assert llm.checks == []


@pytest.mark.parametrize("check", ["params", "lora", "length", "ids"])
def test_what_vllm_refuses_is_the_clients_fault(check: str) -> None:
    with pytest.raises(BadTensor, match=f"engine_request: {check} refused"):
        check_engine_request(engine(Llm(check)), request())
