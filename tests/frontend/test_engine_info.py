"""openai_frontend/engine_info.py: facts from Triton, and refused servers."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import get_type_hints

import pytest

from openai_frontend import engine_info
from openai_frontend.engine_info import EngineInfo, IncompatibleServer, check_contract
from tritonlive.wire.operations.engine import EngineDescription
from tritonlive.wire.tensor_names import FRONT_END_INPUTS, FRONT_END_OUTPUTS

ENGINE_INFO = EngineInfo(
    vllm_version="0.32.0",
    engine_argv=["--model", "m"],
    model="m",
    served_model_name=["m"],
    supported_tasks=["generate"],
    max_model_len=2048,
    num_gpu_blocks=10,
    block_size=16,
    kv_cache_size_tokens=160,
    world_size=1,
    world_size_across_dp=1,
)


def config(inputs: frozenset[str], outputs: frozenset[str], max_batch_size: int = 256) -> SimpleNamespace:
    def tensors(names: frozenset[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in names]

    return SimpleNamespace(input=tensors(inputs), output=tensors(outputs), max_batch_size=max_batch_size)


def test_the_fields_are_those_of_the_operation() -> None:
    described = get_type_hints(EngineDescription)
    assert get_type_hints(EngineInfo) == {name: described[name] for name in EngineInfo.__dataclass_fields__}


def test_json_there_and_back() -> None:
    assert EngineInfo.parse(ENGINE_INFO.to_json()) == ENGINE_INFO


def test_a_newer_servers_further_fields_are_passed_over() -> None:
    assert EngineInfo.parse(ENGINE_INFO.to_json().replace("{", '{"news": 1, ', 1)) == ENGINE_INFO


def test_our_model_is_accepted() -> None:
    check_contract(config(FRONT_END_INPUTS, FRONT_END_OUTPUTS))


def test_another_model_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(IncompatibleServer, match="engine_abort, engine_outputs"):
        check_contract(config(FRONT_END_INPUTS - {"engine_abort"}, FRONT_END_OUTPUTS - {"engine_outputs"}))


def test_a_model_that_takes_too_few_at_once_is_refused() -> None:
    with pytest.raises(IncompatibleServer, match="max_batch_size of 8: set it to 64"):
        check_contract(config(FRONT_END_INPUTS, FRONT_END_OUTPUTS, max_batch_size=8))


def test_nobody_there_is_not_ready() -> None:
    assert engine_info.fetch("127.0.0.1:1") is None


def test_waiting_ends_at_its_limit() -> None:
    said: list[str] = []
    with pytest.raises(TimeoutError, match=r"127\.0\.0\.1:1"):
        engine_info.wait(["127.0.0.1:1"], 0.1, said.append)
    assert len(said) == 1


def test_the_first_of_several_that_answers_describes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_info, "fetch", lambda url: ENGINE_INFO if url == "b:8001" else None)
    assert engine_info.wait(["a:8001", "b:8001"], 0.1, lambda text: None) == ENGINE_INFO


def test_one_that_is_not_ours_among_several_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str) -> EngineInfo:
        if url == "a:8001":
            raise IncompatibleServer("not ours")
        return ENGINE_INFO

    monkeypatch.setattr(engine_info, "fetch", fetch)
    assert engine_info.wait(["a:8001", "b:8001"], 0.1, lambda text: None) == ENGINE_INFO
    with pytest.raises(IncompatibleServer, match="not ours"):
        engine_info.wait(["a:8001"], 0.1, lambda text: None)


def test_a_replica_of_another_model_is_told_apart_by_what_matters() -> None:
    assert ENGINE_INFO.difference(replace(ENGINE_INFO, num_gpu_blocks=11, engine_argv=["--model", "./m"])) is None
    assert ENGINE_INFO.difference(replace(ENGINE_INFO, max_model_len=1024)) == (
        "its max_model_len is 1024, and this front end was started for 2048"
    )


def test_an_answer_that_lacks_something_is_of_another_version() -> None:
    with pytest.raises(IncompatibleServer, match="world_size"):
        EngineInfo.of({name: value for name, value in asdict(ENGINE_INFO).items() if name != "world_size"})
