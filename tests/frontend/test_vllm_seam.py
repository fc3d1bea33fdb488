"""The undocumented parts of vLLM that the front end uses. An upgrade that moves one fails here, by name."""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from vllm.engine.protocol import EngineClient
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.metrics.stats import RequestStateStats

import openai_frontend
from openai_frontend import vllm_seam
from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.vllm_seam import (
    AsyncLLM,
    EngineCoreClient,
    EngineCoreOutputs,
    EngineCoreRequest,
    IterationStats,
    OutputProcessor,
    change_class,
)
from tests.constructed import attributes_set_in

# Parameters of functions that we call, override or replace, in vLLM 0.32.0. `x=`: has a default; after `*`: keywords.
SIGNATURES: dict[str, str] = json.loads(Path(__file__).with_name("vllm_signatures.json").read_text())
# vLLM's documented modules, which every module of the front end may import.
PUBLIC_MODULES = {
    "vllm.exceptions",
    "vllm.logprobs",
    "vllm.lora.request",
    "vllm.outputs",
    "vllm.pooling_params",
    "vllm.sampling_params",
}
SOURCES = sorted(Path(openai_frontend.__file__).parent.rglob("*.py"))


def parameters(function: Callable[..., Any]) -> str:
    """As in SIGNATURES."""
    parts: list[str] = []
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        parts.append(f"{stars}{each.name}{'' if each.default is each.empty else '='}")
    return ", ".join(parts)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_the_one_that_the_front_end_was_written_for(name: str) -> None:
    function: Any = vllm_seam
    for part in name.split("."):
        assert hasattr(function, part), f"vLLM's {name} is gone"
        function = getattr(function, part)
    found = parameters(function)
    assert found == SIGNATURES[name], f"vLLM's {name} moved: was ({SIGNATURES[name]}), is ({found})"


def test_every_override_of_a_method_has_its_signature_here() -> None:
    named = {name.removeprefix("AsyncLLM.") for name in SIGNATURES if name.startswith("AsyncLLM.")}
    assert {name for name in overridden() if inspect.isfunction(getattr(AsyncLLM, name))} <= named


@pytest.mark.parametrize("name", sorted(name for name in SIGNATURES if name.startswith("AsyncLLM.")))
def test_an_override_takes_what_vllms_method_takes(name: str) -> None:
    method = name.removeprefix("AsyncLLM.")
    ours = inspect.signature(getattr(TritonEngineClient, method)).parameters
    if method == "__init__" or any(each.kind is each.VAR_KEYWORD for each in ours.values()):
        return
    assert list(ours) == list(inspect.signature(getattr(AsyncLLM, method)).parameters), f"{name} takes other parameters"


def overridden() -> set[str]:
    """Names of AsyncLLM that our client defines, too."""
    classes = TritonEngineClient.__mro__[: TritonEngineClient.__mro__.index(AsyncLLM)]
    return {name for each in classes for name in vars(each) if name in dir(AsyncLLM) and name not in dir(object)}


def test_async_llms_attributes_that_we_use_are_set_by_its_constructor() -> None:
    used = {
        "engine_core",
        "log_stats",
        "output_handler",
        "output_processor",
        "renderer",
        "vllm_config",
        "logger_manager",
    }
    assert used <= attributes_set_in(AsyncLLM.__init__)


def test_async_llms_constructor_takes_its_core_client_from_where_we_put_ours() -> None:
    assert "EngineCoreClient.make_async_mp_client(" in inspect.getsource(AsyncLLM.__init__)


def test_every_engine_core_call_of_async_llm_is_served_or_overridden() -> None:
    """AsyncLLM's methods that we inherit may only use what TritonCoreClient has."""
    ours = overridden()
    inherited = [
        function for name, function in vars(AsyncLLM).items() if inspect.isfunction(function) and name not in ours
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
    # These inherited methods belong to the engine's own process and have no route here.
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
        (EngineCoreOutput, {"request_id", "new_token_ids", "finish_reason", "prefill_stats", "trace_headers"}),
        (EngineCoreOutputs, {"outputs", "scheduler_stats", "weight_version", "timestamp", "engine_index"}),
    ],
)
def test_the_structs_on_the_wire_have_the_fields_we_read(struct: type[msgspec.Struct], fields: set[str]) -> None:
    assert fields <= set(struct.__struct_fields__)


def test_the_output_processor_keeps_what_a_refusal_needs() -> None:
    assert {"queue", "parent_req"} <= attributes_set_in(RequestState.__init__)
    assert {"request_states", "parent_requests", "tokenizer"} <= attributes_set_in(OutputProcessor.__init__)


def test_a_requests_stamps_and_a_steps_counts_are_where_they_are_changed() -> None:
    stamps = {field.name for field in dataclasses.fields(RequestStateStats)}
    assert {"queued_ts", "scheduled_ts", "last_token_ts"} <= stamps
    assert {"num_generation_tokens", "inter_token_latencies_iter"} <= attributes_set_in(IterationStats.__init__)


def test_the_output_processor_reads_its_tokenizer_for_each_request() -> None:
    assert "self.tokenizer" in inspect.getsource(OutputProcessor.add_request)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_the_seam_touches_what_vllm_does_not_document(path: Path) -> None:
    if path.name == "vllm_seam.py":
        return
    tree = ast.parse(path.read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in modules if name.split(".")[0] == "vllm"} <= PUBLIC_MODULES
    assigned = [node.targets for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    names = {target.attr for targets in assigned for target in targets if isinstance(target, ast.Attribute)}
    assert "__class__" not in names, "use vllm_seam.change_class"


def test_an_object_of_another_class_keeps_it() -> None:
    class Theirs:
        pass

    class Ours(Theirs):
        pass

    found = change_class(Theirs(), Theirs, Ours, "it")
    assert type(found) is Ours
    with pytest.raises(TypeError, match="it is a Ours, not vLLM's Theirs"):
        change_class(found, Theirs, Ours, "it")
