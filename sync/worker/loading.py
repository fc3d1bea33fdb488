"""Loading checkpoint-format weights into a model that vLLM serves, by its layerwise reload."""

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

    Raises the loader's error; afterwards the model's structure is intact, and its weights are partly replaced. Raises
    TransferError when a layer got no tensor: vLLM itself would continue with that layer's old weights.
    """
    _initialize(model)
    try:
        load_part(model, weights)
        check_complete(model)
    finally:
        end(model, model_config)


def begin(model: Any, model_config: Any) -> None:
    """Begin a load in parts: `load_part` for each, then `check_complete`, then `end`.

    An abandoned load is ended first. Otherwise vLLM would count tensors of it that wait for the rest of their layer,
    and consider that layer complete before its last new tensor has arrived.
    """
    _finalize(model, model_config)
    _initialize(model)


def load_part(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load some tensors. A layer is processed when all of its tensors have arrived."""
    with disable_mtp_completeness_check():
        model.load_weights(iter(weights))


def check_complete(model: Any) -> None:
    """Raises TransferError when a layer got no tensor since the load began."""
    if missed := list(unloaded_layers(model)):
        raise TransferError(f"the model's own loader did not load these layers: {', '.join(missed)}")


def end(model: Any, model_config: Any) -> None:
    """Restore the model's structure, whatever was loaded."""
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
    """The methods of MoE layers whose weights are packed after loading; on a CPU only.

    vLLM packs the weights when it creates the layer's kernel, and a reload keeps the kernel. It would multiply with
    unpacked weights and generate noise, so a reload here creates the kernel again.
    """
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.kernel_before_reload = getattr(method, "kernel_before_reload", None)
            yield method


class _LoadInPlace:
    """Loads an embedding in place, without a temporary copy: it can be a fifth of a model."""

    def __init__(self, embedding: Any) -> None:
        self.own = embedding.weight.weight_loader
        self._info = get_layerwise_info(embedding)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.own(*args, **kwargs)
        self._info.load_numel = self._info.load_numel_total or 0  # tells vLLM that the layer is complete


def _repack(embedding: Any, tied_head: Any) -> None:
    """Pack the weight of an embedding again, or of the output head that shares the weight.

    On a CPU vLLM multiplies with a copy that oneDNN packs after loading. The layerwise reload packs only layers that
    load a tensor themselves. A tied head loads none, and would compute with the old weights.
    """
    layer = tied_head if tied_head is not None else embedding
    layer.quant_method.process_weights_after_loading(layer)
    if tied_head is not None and hasattr(tied_head, "cpu_linear") and _is_plain(embedding):
        embedding.cpu_linear = tied_head.cpu_linear  # the same weight: one copy is enough


def _embeddings(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
            yield module


def _is_plain(embedding: Any) -> bool:
    """Whether the model holds its weight in the checkpoint's form."""
    return type(embedding.quant_method) is UnquantizedEmbeddingMethod


def unloaded_layers(model: Any) -> Iterator[str]:
    """Names of the layers that have got no tensor since the reload began.

    Left out are layers that need none: tied heads, attention layers (their scales are in few checkpoints), and layers
    with buffers only (rotary embeddings), which are computed.
    """
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        is_waiting = info.can_load() and info.load_numel == 0 and any(True for _ in layer.parameters(recurse=False))
        if is_waiting and not is_deferred_attention_layer(layer) and not isinstance(layer, ParallelLMHead):
            yield name
