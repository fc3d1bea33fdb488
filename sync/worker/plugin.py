"""The plugin that vLLM loads in each of its processes (entry point group `vllm.general_plugins`)."""

import multiprocessing
import os
from importlib import import_module

from tritonlive.wire.environment import ENGINE_HOOK_VARIABLE

from .orphan import end_with_parent


def register() -> None:
    """Register our weight transfer backends with vLLM. Repeated calls do nothing.

    vLLM imports a backend's module when it creates such an engine.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    from . import lora_logits

    engines = {
        "gloo": ("sync.worker.gloo_worker", "GlooWeightTransferEngine"),
        "cuda_ipc": ("sync.worker.ipc_worker", "CudaIpcWeightTransferEngine"),
        "nccl_trl_legacy": ("sync.worker.trl_legacy_worker", "TrlLegacyWeightTransferEngine"),
    }
    for name, (module, class_name) in engines.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)
    if multiprocessing.parent_process() is not None:
        # Otherwise an engine core would outlive a killed server and keep the model's memory.
        end_with_parent()
        if hook := os.environ.get(ENGINE_HOOK_VARIABLE):
            module, _, function = hook.partition(":")
            getattr(import_module(module), function)()
        if current_platform.is_cpu():
            lora_logits.mend()
