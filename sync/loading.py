"""Loading checkpoint-format weights into a model that vLLM serves; all that leans on its layerwise reload is here."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from .errors import TransferError


def load(model: Any, model_config: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load checkpoint-format weights into a running model, layer by layer (vLLM's layerwise reload).

    When that fails the error is raised; the model's structure is whole again, its weights are partly replaced. Raises
    TransferError when the weights left a layer as it was: vLLM by itself would go on with its old ones.
    """
    initialize_layerwise_reload(model)
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
    finalize_layerwise_reload(model, model_config)
    initialize_layerwise_reload(model)


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
    finalize_layerwise_reload(model, model_config)
    repack_tied_heads(model)


def repack_tied_heads(model: Any) -> None:
    """Give an output head that shares the embedding's weight its packed copy anew.

    On a CPU vLLM multiplies with a copy packed by oneDNN, made after loading. The layerwise reload makes it anew for
    layers that load a tensor of their own; a tied head loads none, and would answer with the old weights.
    """
    embeddings = {
        module.weight.data_ptr()
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.data_ptr() in embeddings:
            module.quant_method.process_weights_after_loading(module)


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
