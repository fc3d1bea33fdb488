"""The undocumented parts of vLLM that the backend uses (tritonlive/backend/vllm_seam).

A vLLM release that moves a name or changes a signature fails here, with the name, and not in production.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
from vllm import envs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources, MPClient

import tritonlive.backend
from tests.constructed import attributes_set_in
from tritonlive.backend.vllm_seam import messages
from tritonlive.backend.vllm_seam.arguments import parse_serve_arguments, weight_transfer_backends
from tritonlive.backend.vllm_seam.requests import SAMPLING_PARAMETERS

BACKEND = Path(*tritonlive.backend.__path__)
SEAM = BACKEND / "vllm_seam"

# Module, name in it, and its parameters as inspect.signature has them, without annotations.
SIGNATURES = (
    (
        "vllm.v1.engine.async_llm",
        "AsyncLLM.from_engine_args",
        "(cls, engine_args, start_engine_loop=True, "
        "usage_context=<UsageContext.ENGINE_CONTEXT: 'ENGINE_CONTEXT'>, stat_loggers=None)",
    ),
    ("vllm.v1.engine.async_llm", "AsyncLLM._run_output_handler", "(self)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", "(self, timeout=None)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.check_admission", "(self, n=1, request_id=None)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.get_supported_tasks", "(self)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.collective_rpc", "(self, method, timeout=None, args=(), kwargs=None)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.pause_generation", "(self, *, mode='abort', clear_cache=True)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.resume_generation", "(self)"),
    (
        "vllm.v1.engine.async_llm",
        "AsyncLLM.reset_prefix_cache",
        "(self, reset_running_requests=False, reset_connector=False)",
    ),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_mm_cache", "(self)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_encoder_cache", "(self)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.sleep", "(self, level=1, mode='abort')"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.wake_up", "(self, tags=None)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.get_weight_version", "(self)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.update_weight_version", "(self, new_version)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.add_lora", "(self, lora_request)"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.remove_lora", "(self, lora_id)"),
    ("vllm.v1.engine.core_client", "AsyncMPClient.get_output_async", "(self)"),
    ("vllm.v1.engine.core_client", "AsyncMPClient.add_request_async", "(self, request)"),
    ("vllm.v1.engine.core_client", "AsyncMPClient.abort_requests_async", "(self, request_ids)"),
    ("vllm.v1.engine.core_client", "AsyncMPClient.pause_scheduler_async", "(self, mode='abort', clear_cache=True)"),
    ("vllm.v1.engine.core_client", "AsyncMPClient.call_utility_all_async", "(self, method, *args)"),
    ("vllm.v1.engine.input_processor", "InputProcessor._validate_params", "(self, params, supported_tasks)"),
    ("vllm.v1.engine.input_processor", "InputProcessor._validate_lora", "(self, lora_request)"),
    ("vllm.v1.engine.input_processor", "InputProcessor._validate_prompt_len", "(self, prompt_len, prompt_type)"),
    ("vllm.v1.engine.input_processor", "InputProcessor._validate_model_inputs", "(self, encoder_input, decoder_input)"),
    (
        "vllm.v1.engine.input_processor",
        "InputProcessor.process_inputs",
        "(self, request_id, prompt, params, supported_tasks, arrival_time=None, lora_request=None, "
        "tokenization_kwargs=None, trace_headers=None, priority=0, data_parallel_rank=None, resumable=False, "
        "session_id=None, kv_hints=None)",
    ),
    ("vllm.v1.engine.input_processor", "InputProcessor.assign_request_id", "(request)"),
    ("vllm.v1.engine.parallel_sampling", "ParentRequest.__init__", "(self, request)"),
    ("vllm.v1.engine.parallel_sampling", "ParentRequest.get_child_info", "(self, index)"),
    ("vllm.v1.metrics.buckets", "histogram_buckets", "(family, max_model_len=None, overrides=None)"),
    ("vllm.renderers.inputs.preprocess", "parse_model_prompt", "(model_config, prompt)"),
    (
        "vllm.renderers.base",
        "BaseRenderer.render_cmpl_async",
        "(self, prompts, tok_params=None, *, prompt_extras=None, skip_mm_cache=False)",
    ),
    ("vllm.renderers.base", "BaseRenderer.default_cmpl_tok_params.func", "(self)"),
    ("vllm.renderers.base", "BaseRenderer.validate_token_ids", "(self, token_ids, *, parameter=None)"),
    ("vllm.v1.serial_utils", "MsgpackDecoder.__init__", "(self, t=None, share_mem=True, oob_tensor_provider=None)"),
    ("vllm.v1.serial_utils", "MsgpackDecoder.decode", "(self, bufs)"),
    ("vllm.v1.serial_utils", "MsgpackEncoder.__init__", "(self, size_threshold=None, oob_tensor_consumer=None)"),
    ("vllm.v1.serial_utils", "MsgpackEncoder.encode", "(self, obj)"),
    ("vllm.entrypoints.launchers.cli_args", "make_arg_parser", "(parser)"),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.from_cli_args", "(cls, args)"),
    ("vllm.utils.argparse_utils", "FlexibleArgumentParser.parse_args", "(self, args=None, namespace=None)"),
    ("vllm.utils.argparse_utils", "FlexibleArgumentParser.error", "(self, message)"),
    ("vllm.plugins", "load_general_plugins", "()"),
    ("vllm.platforms.interface", "Platform.is_cpu", "(self)"),
    ("vllm.utils.import_utils", "resolve_obj_by_qualname", "(qualname)"),
    ("vllm.utils.cpu_resource_utils", "LogicalCPUInfo", "(id=-1, physical_core=-1, numa_node=-1)"),
    ("vllm.utils.cpu_resource_utils", "get_allowed_cpu_list", "()"),
    ("vllm.utils.cpu_resource_utils", "get_visible_memory_node", "()"),
    ("vllm.lora.utils", "is_base_embedding_weights", "(name)"),
    ("vllm.v1.worker.gpu_worker", "Worker.execute_dummy_batch", "(self)"),
)

# Classes, and attributes that their __init__ sets.
ATTRIBUTES = (
    (AsyncLLM, {"engine_core", "input_processor", "renderer", "model_config", "vllm_config"}),
    (MPClient, {"resources", "ctx"}),
)

# Structs, and the fields of them that the backend reads or sets.
FIELDS = (
    (
        messages.EngineCoreRequest,
        {
            *("request_id", "prompt_token_ids", "prompt_embeds", "sampling_params", "lora_request"),
            *("resumable", "abort_immediately"),
        },
    ),
    (
        messages.EngineCoreOutput,
        {
            *("request_id", "new_token_ids", "new_logprobs", "new_prompt_logprobs_tensors", "finish_reason"),
            *("stop_reason", "prefill_stats"),
        },
    ),
    (messages.EngineCoreOutputs, {"outputs", "scheduler_stats", "weight_version"}),
)

# Modules that vLLM documents, or whose names its examples use. All others are for the seam only.
DOCUMENTED = frozenset(
    {
        *("vllm", "vllm.config", "vllm.engine.arg_utils", "vllm.exceptions", "vllm.inputs", "vllm.lora.request"),
        *("vllm.outputs", "vllm.pooling_params", "vllm.sampling_params", "vllm.version"),
    }
)


def find(module: str, name: str) -> Any:
    """The object, or a failure that says what moved."""
    try:
        found: Any = import_module(module)
    except ImportError as error:
        pytest.fail(f"vLLM moved or removed the module {module} (for {name}): {error}")
    for part in name.split("."):
        if not hasattr(found, part):
            pytest.fail(f"vLLM moved or removed {module}.{name}: there is no {part!r}")
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    return found


def signature(function: Any) -> str:
    """A function's parameters with their kinds and defaults, without annotations."""
    function = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    bare = inspect.signature(function)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in bare.parameters.values()]
    return str(bare.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize(("module", "name", "expected"), SIGNATURES)
def test_a_signature_is_the_one_expected(module: str, name: str, expected: str) -> None:
    found = signature(find(module, name))
    assert found == expected, f"vLLM changed the signature of {module}.{name}"


@pytest.mark.parametrize(("kind", "names"), ATTRIBUTES)
def test_an_attribute_is_still_set(kind: type, names: set[str]) -> None:
    gone = names - attributes_set_in(kind.__init__)
    assert not gone, f"vLLM moved {kind.__qualname__}: {', '.join(sorted(gone))}"


@pytest.mark.parametrize(("struct", "names"), FIELDS)
def test_a_struct_has_the_fields_that_are_read(struct: type[msgspec.Struct], names: set[str]) -> None:
    gone = names - set(struct.__struct_fields__)
    assert not gone, f"vLLM moved {struct.__qualname__}: {', '.join(sorted(gone))}"


def test_logprobs_have_the_columns_that_are_read() -> None:
    assert messages.LogprobsLists._fields[:3] == ("logprob_token_ids", "logprobs", "sampled_token_ranks")
    assert messages.LogprobsTensors._fields[:2] == ("logprob_token_ids", "logprobs")


def test_statistics_have_the_gauges_that_are_read() -> None:
    read = {"num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage"}
    assert read <= {field.name for field in dataclasses.fields(messages.SchedulerStats)}


def test_the_engine_manager_has_its_processes() -> None:
    assert "engine_manager" in {field.name for field in dataclasses.fields(BackgroundResources)}
    manager = find("vllm.v1.engine.utils", "CoreEngineProcManager")
    assert "processes" in attributes_set_in(manager.__init__)


def test_async_llm_reads_outputs_through_the_attribute_that_is_replaced() -> None:
    """`intercept_outputs` replaces it on the client's instance: AsyncLLM must look it up there."""
    source = inspect.getsource(AsyncLLM._run_output_handler)
    assert "engine_core.get_output_async()" in source
    assert "__slots__" not in vars(AsyncMPClient)


def test_a_call_reaches_the_worker_extension_of_every_engine() -> None:
    """`call_workers` passes collective_rpc's arguments by position."""
    rpc = find("vllm.v1.engine.core", "EngineCore.collective_rpc")
    assert list(inspect.signature(rpc).parameters) == ["self", "method", "timeout", "args", "kwargs"]


def test_the_sleep_tags_are_those_that_replica_state_knows() -> None:
    assert frozenset(messages.SLEEP_TAGS) == {"weights", "kv_cache"}


def test_the_environment_has_the_variables_that_are_set() -> None:
    assert {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND"} <= set(envs.environment_variables)


def test_working_fields_of_sampling_params_still_begin_with_an_underscore() -> None:
    names = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert {"temperature", "max_tokens", "logprobs", "output_kind"} <= SAMPLING_PARAMETERS < names


def test_the_registry_has_vllms_backends_and_ours() -> None:
    assert {"nccl", "ipc", "gloo"} <= weight_transfer_backends()


def test_the_parser_raises_in_place_of_an_exit() -> None:
    with pytest.raises(ValueError, match="--no-such-option"):
        parse_serve_arguments(["--no-such-option"])


# ---- nothing goes past the seam -------------------------------------------------------------------------------------


def imports_of_vllm(path: Path) -> Iterator[str]:
    """The vLLM modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (module for module in modules if module.partition(".")[0] == "vllm")


FILES = sorted(path for path in BACKEND.rglob("*.py") if SEAM not in path.parents)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(BACKEND)) for path in FILES])
def test_only_the_seam_imports_undocumented_modules(path: Path) -> None:
    assert not set(imports_of_vllm(path)) - DOCUMENTED


# Attributes through which vLLM's internals are reached.
INTERNALS = frozenset({"engine_core", "input_processor", "renderer", "_run_output_handler", "collective_rpc"})


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(BACKEND)) for path in FILES])
def test_only_the_seam_reaches_into_async_llm(path: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not used & INTERNALS
