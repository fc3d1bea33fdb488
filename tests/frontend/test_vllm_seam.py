"""What we lean on beneath vLLM's public face. A vLLM upgrade that moves it fails here, not in production."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from vllm.engine.protocol import EngineClient
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.engine.triton_engine import TritonEngineClient


def attributes_set_in(function: Callable[..., Any]) -> set[str]:
    """Names of `self.X = …` in a function's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def test_our_client_sets_what_async_llm_sets() -> None:
    theirs = attributes_set_in(AsyncLLM.__init__)
    # Set only where the frontend profiler is configured, which belongs to the engine's process.
    theirs -= {"_frontend_profiler_worker_name"}
    assert theirs <= attributes_set_in(TritonEngineClient.__init__)


def test_every_engine_core_call_of_async_llm_is_served_or_overridden() -> None:
    """AsyncLLM's methods that we inherit may only use what TritonCoreClient has."""
    inherited = [
        function
        for name, function in vars(AsyncLLM).items()
        if inspect.isfunction(function) and name not in vars(TritonEngineClient)
    ]
    used = {
        node.attr
        for function in inherited
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "engine_core"
    }
    missing = {name for name in used if not served(name)}
    # Of the inherited methods these belong to the engine's own process and have no route here.
    assert missing <= {
        "profile_async",
        "release_kv_cache_memory_async",
        "pin_lora_async",
        "prepare_elastic_ep",
        "commit_elastic_ep",
        "handle_fault",
        "get_status",
    }


def served(name: str) -> bool:
    ours = getattr(TritonCoreClient, name, None)
    if ours is None:
        return name in attributes_set_in(TritonCoreClient.__init__)
    return ours is not getattr(EngineCoreClient, name, None) or name == "get_kv_event_sources"


def test_every_abstract_method_of_the_engine_client_is_there() -> None:
    assert not getattr(TritonEngineClient, "__abstractmethods__", frozenset())
    assert issubclass(TritonEngineClient, EngineClient)


@pytest.mark.parametrize(
    ("struct", "fields"),
    [
        (EngineCoreRequest, {"request_id", "prompt_token_ids", "sampling_params", "prompt_embeds", "resumable"}),
        (EngineCoreOutput, {"request_id", "new_token_ids", "finish_reason", "prefill_stats"}),
        (EngineCoreOutputs, {"outputs", "scheduler_stats", "weight_version", "timestamp"}),
    ],
)
def test_the_structs_on_the_wire_have_the_fields_we_read(struct: type[msgspec.Struct], fields: set[str]) -> None:
    assert fields <= set(struct.__struct_fields__)


def test_the_output_processor_keeps_what_a_refusal_needs() -> None:
    assert {"queue", "parent_req"} <= attributes_set_in(RequestState.__init__)
    assert {"request_states", "parent_requests"} <= attributes_set_in(OutputProcessor.__init__)
    assert "internal" in inspect.signature(OutputProcessor.abort_requests).parameters


@pytest.mark.parametrize(
    "name", ["_validate_params", "_validate_lora", "_validate_prompt_len", "_validate_model_inputs"]
)
def test_the_input_processors_checks_that_the_model_borrows(name: str) -> None:
    assert callable(getattr(InputProcessor, name))
