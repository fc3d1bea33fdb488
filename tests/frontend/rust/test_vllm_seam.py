"""What the Rust port takes from vLLM's inside. An upgrade that fails here needs a review of openai_frontend/rust."""

import inspect
from dataclasses import fields

from vllm.v1.engine import EngineCoreReadyResponse, EngineCoreRequestType
from vllm.v1.utils import RustFrontendProcessManager

from openai_frontend.rust import vllm_seam
from openai_frontend.rust.engine_sockets import ENGINE_DEAD, MessageType


def test_signatures() -> None:
    parameters = inspect.signature(vllm_seam.jsonify_non_default_args).parameters
    assert list(parameters)[:2] == ["args", "exclude"]


def test_a_ready_response_has_these_fields() -> None:
    assert {field.name for field in fields(EngineCoreReadyResponse)} == {
        "max_model_len",
        "num_gpu_blocks",
        "block_size",
        "dp_stats_address",
        "dtype",
        "vllm_version",
        "world_size",
        "data_parallel_size",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "data_parallel_rank",
        "max_num_seqs",
        "max_num_batched_tokens",
        "instance_id",
        "supports_lora",
        "max_loras",
        "mamba_block_size",
        "kv_cache_size_tokens",
        "kv_cache_max_concurrency",
        "kv_events_config",
        "weight_transfer_backend",
        "enable_sleep_mode",
        "supports_draft_weight_updates",
        "effective_attention_block_size",
    }


def test_message_types_are_vllms() -> None:
    assert {kind.name: kind.value for kind in MessageType} == {
        kind: EngineCoreRequestType[kind].value for kind in ("ADD", "ABORT", "UTILITY")
    }


def test_the_process_is_started_as_vllm_starts_it() -> None:
    source = inspect.getsource(RustFrontendProcessManager.__init__)
    for word in ("--listen-fd", "--input-listener-fd", "--output-listener-fd", "--engine-count", "--args-json"):
        assert f'"{word}"' in source
    for key in ("model_tag", "engine_ready_timeout_secs", "http_timeout_keep_alive"):
        assert f'args_dict["{key}"]' in source


def test_the_last_word_of_an_engine_is_vllms() -> None:
    from vllm.v1.engine.core import EngineCoreProc

    assert EngineCoreProc.ENGINE_CORE_DEAD == ENGINE_DEAD
