"""What the Rust port touches of vLLM's undocumented parts. tests/frontend/rust/test_vllm_seam.py checks it."""

from vllm.config import VllmConfig
from vllm.entrypoints.serve.utils.api_utils import jsonify_non_default_args
from vllm.v1.engine import EngineCoreReadyResponse

from openai_frontend.vllm_seam import vllm_version

__all__ = ["jsonify_non_default_args", "ready_response"]


def ready_response(config: VllmConfig, instance_id: str) -> EngineCoreReadyResponse:
    """As vLLM's EngineCoreProc makes it, for an engine without adapters, sleep mode and weight transfer.

    Those have control routes at the Rust front end, and this port serves none.
    """
    cache, parallel, scheduler = config.cache_config, config.parallel_config, config.scheduler_config
    return EngineCoreReadyResponse(
        max_model_len=config.model_config.max_model_len,
        num_gpu_blocks=cache.num_gpu_blocks or 0,
        block_size=cache.block_size,
        dp_stats_address=None,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        vllm_version=vllm_version,
        world_size=parallel.world_size,
        data_parallel_size=1,  # replicas are independent engines
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        decode_context_parallel_size=parallel.decode_context_parallel_size,
        data_parallel_rank=0,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        instance_id=instance_id,
        supports_lora=False,
        max_loras=0,
        kv_cache_size_tokens=cache.kv_cache_size_tokens,
        effective_attention_block_size=cache.block_size,
    )
