"""Loading checkpoint-format weights into a model that vLLM serves; all that leans on its layerwise reload is here."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info
from vllm.platforms import current_platform

from sync.errors import TransferError


def load(model: Any, model_config: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load checkpoint-format weights into a running model, layer by layer (vLLM's layerwise reload).

    When that fails the error is raised; the model's structure is whole again, its weights are partly replaced. Raises
    TransferError when the weights left a layer as it was: vLLM by itself would go on with its old ones.
    """
    _initialize(model)
    try:
        load_part(model, weights)
        check_complete(model)
    finally:
        end(model, model_config)


def begin(model: Any, model_config: Any) -> None:
    """Begin a load in parts: `load_part` for each, `check_complete`, `end`.

    One that was given up is ended first. vLLM would count the tensors it left waiting for the rest of their layer as
    this load's, and take the layer for complete before the last new one is there.
    """
    _finalize(model, model_config)
    _initialize(model)


def load_part(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Tensors wait until their layer's others are there, too."""
    with disable_mtp_completeness_check():
        model.load_weights(iter(weights))


def check_complete(model: Any) -> None:
    """Raises TransferError when a layer got no tensor since the load began."""
    if missed := list(unloaded_layers(model)):
        raise TransferError(f"the model's own loader left these layers as they were: {', '.join(missed)}")


def end(model: Any, model_config: Any) -> None:
    """Make the model's structure whole again, whatever was loaded."""
    _finalize(model, model_config)
    heads = {head.weight.data_ptr(): head for head in model.modules() if isinstance(head, ParallelLMHead)}
    for embedding in _embeddings(model):
        tied_head = heads.get(embedding.weight.data_ptr())
        if tied_head is not None or _is_plain(embedding):
            _repack(embedding, tied_head)


def _initialize(model: Any) -> None:
    initialize_layerwise_reload(model)
    for method in _packed_experts(model):
        method.kernel_before_reload = method.kernel_before_reload or method.moe_kernel
        method.moe_kernel = None
    for embedding in filter(_is_plain, _embeddings(model)):
        _place_kernel_tensors(embedding, get_layerwise_info(embedding))
        embedding.weight.weight_loader = _LoadInPlace(embedding)


def _finalize(model: Any, model_config: Any) -> None:
    finalize_layerwise_reload(model, model_config)
    for method in _packed_experts(model):
        if method.moe_kernel is None:  # its layer got no tensor
            method.moe_kernel = method.kernel_before_reload
        method.kernel_before_reload = None
    for embedding in filter(_is_plain, _embeddings(model)):
        if isinstance(embedding.weight.weight_loader, _LoadInPlace):
            embedding.weight.weight_loader = embedding.weight.weight_loader.own


def _packed_experts(model: Any) -> Iterator[Any]:
    """The methods of MoE layers that multiply with weights packed after loading: on a CPU.

    vLLM packs them when it makes the layer's kernel, and a reload keeps the kernel: it would multiply with unpacked
    weights, and answer with noise. So a reload makes it anew.
    """
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.kernel_before_reload = getattr(method, "kernel_before_reload", None)
            yield method


class _LoadInPlace:
    """Loads an embedding where it is, not into fresh memory to be copied from: it can be a fifth of a model."""

    def __init__(self, embedding: Any) -> None:
        self.own = embedding.weight.weight_loader
        self._info = get_layerwise_info(embedding)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.own(*args, **kwargs)
        self._info.load_numel = self._info.load_numel_total or 0  # vLLM has nothing left to do for it


def _repack(embedding: Any, tied_head: Any) -> None:
    """Give an embedding, or the output head that shares its weight, its packed copy anew.

    On a CPU vLLM multiplies with a copy packed by oneDNN, made after loading. The layerwise reload makes it anew for
    layers that load a tensor of their own; a tied head loads none, and would answer with the old weights.
    """
    layer = tied_head if tied_head is not None else embedding
    layer.quant_method.process_weights_after_loading(layer)
    if tied_head is not None and hasattr(tied_head, "cpu_linear") and _is_plain(embedding):
        embedding.cpu_linear = tied_head.cpu_linear  # of the same weight: one copy will do


def _embeddings(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
            yield module


def _is_plain(embedding: Any) -> bool:
    """Whether its weight is in the model as it is in the checkpoint."""
    return type(embedding.quant_method) is UnquantizedEmbeddingMethod


def unloaded_layers(model: Any) -> Iterator[str]:
    """Names of the layers no tensor has reached since the reload began: whatever they are fused from or renamed to.

    A tied head has no tensor of its own, attention layers only scales that few checkpoints have, and buffers alone
    (rotary embeddings) are computed.
    """
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        is_waiting = info.can_load() and info.load_numel == 0 and any(True for _ in layer.parameters(recurse=False))
        if is_waiting and not is_deferred_attention_layer(layer) and not isinstance(layer, ParallelLMHead):
            yield name
