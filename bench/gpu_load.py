"""`python -m bench.gpu_load MODEL`: times vLLM's loading of tensors that are already on the GPU, in an idle engine.

Never run: no GPU was available.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.child import serve
from sync.weights.checkpoint_source import CheckpointSource


class GpuLoadTimer:
    """Methods of a worker (`--worker-extension-cls`). vLLM calls them by name, so nothing is pickled."""

    model_runner: Any
    device: torch.device
    bench_tensors: Any = None

    def time_load(self) -> float:
        """Run one layerwise reload, as at the end of an NCCL push; returns its seconds."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model, config = self.model_runner.model, self.model_runner.model_config
        if self.bench_tensors is None:
            self.bench_tensors = [(name, tensor.to(self.device)) for name, tensor in CheckpointSource(config.model)]
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            initialize_layerwise_reload(model)
            model.load_weights(self.bench_tensors)
            finalize_layerwise_reload(model, config)
        torch.cuda.synchronize()
        return time.perf_counter() - began


def start() -> Callable[[dict[str, Any]], float]:
    from vllm import LLM

    llm = LLM(
        sys.argv[1],
        enforce_eager=True,
        max_model_len=2048,
        gpu_memory_utilization=0.4,
        worker_extension_cls="bench.gpu_load.GpuLoadTimer",
    )
    return lambda _question: max(llm.collective_rpc("time_load"))


if __name__ == "__main__":
    serve(start)
