"""The answer to `parameters`: the tensors of a full push, each in the dtype in which it travels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError
from sync.weights.checkpoint_source import find_checkpoint
from sync.weights.dtypes import travel_dtype, widest
from sync.weights.weight_source import ParamMeta

if TYPE_CHECKING:
    from torch.nn import Module

    from .loaded_parameters import LoadedParameter

HEAD = "lm_head.weight"


def weight_parameters(model: "Module", vllm_config: Any) -> dict[str, Any]:
    """One rank's answer, as JSON has it.

    Runs in a vLLM worker, between two steps of the engine. It runs once: 20 000 tensors take 2 s. Names and shapes are
    those of the checkpoint that vLLM was started with. Without safetensors on this machine (`--load-format dummy` over
    a bare configuration, GGUF) they are those that transformers would save for the configuration.
    """
    from .loaded_parameters import UntraceableError, loaded_parameters

    config = vllm_config.model_config
    about = {"load_format": str(vllm_config.load_config.load_format), "quantization": config.quantization}
    try:
        metas = checkpoint_metas(config)
    except (OSError, SourceError, ValueError) as error:
        return {"parameters": None, "tied": [], "reason": str(error), **about}
    untraced = None
    report: dict[str, LoadedParameter] | None = None
    try:
        report = loaded_parameters(model, metas)
    except UntraceableError as error:
        untraced = str(error)
    is_tied = bool(getattr(config.hf_text_config, "tie_word_embeddings", False))
    return {**describe_parameters(metas, report, is_tied=is_tied), "untraced": untraced, **about}


def describe_parameters(
    metas: Sequence[ParamMeta], report: "Mapping[str, LoadedParameter] | None", *, is_tied: bool
) -> dict[str, Any]:
    """{"parameters": [{"name", "dtype", "shape", "loaded"}], "tied": [names]}, by name.

    Without a report (the model's loader cannot be followed) all names count as loaded, in the checkpoint's dtypes.
    """
    listed = []
    for meta in sorted(metas):
        loaded = report.get(meta.name) if report is not None else None
        dtype = travel_dtype(meta.dtype_name, loaded.dtype_name) if loaded is not None else meta.dtype_name
        is_loaded = report is None or loaded is not None
        listed.append({"name": meta.name, "dtype": dtype, "shape": list(meta.shape), "loaded": is_loaded})
    return {"parameters": listed, "tied": _tied(metas, report, is_tied=is_tied)}


def merge_answers(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the ranks' answers: a tensor is loaded when a rank loads it, in the dtype of the ranks that do.

    When one rank could not trace its model's loader, its answer is the result: which names that rank loads, and in
    which dtype, is unknown.
    """
    first = next((answer for answer in answers if answer["parameters"] is None), answers[0])
    if first["parameters"] is None:
        return dict(first)
    if blind := next((answer for answer in answers if answer.get("untraced")), None):
        return dict(blind)
    merged = []
    for ranks in zip(*(answer["parameters"] for answer in answers), strict=True):
        loaded = [each for each in ranks if each["loaded"]]
        dtype = widest(*(each["dtype"] for each in loaded)) if loaded else ranks[0]["dtype"]
        merged.append({**ranks[0], "dtype": dtype, "loaded": bool(loaded)})
    # A rank of a pipeline may load by itself a head that the others do not have.
    tied = set(first["tied"]).intersection(*(answer["tied"] for answer in answers))
    return {**first, "parameters": merged, "tied": sorted(tied)}


def _tied(metas: Sequence[ParamMeta], report: "Mapping[str, LoadedParameter] | None", *, is_tied: bool) -> list[str]:
    """The names of output heads that the model makes from the embedding.

    The configuration is not enough (is_tied): vLLM loads a head of its own from a checkpoint that has one, and ties the
    two after all when they are equal; then they are one memory, and would hold what is loaded last.
    """
    heads = {HEAD} | {meta.name for meta in metas if meta.name.endswith(f".{HEAD}")}
    if report is None:
        return sorted(heads) if is_tied else []
    return sorted(head for head in heads if (_is_shared(head, report) if head in report else is_tied))


def _is_shared(head: str, report: "Mapping[str, LoadedParameter]") -> bool:
    others = {parameter for name, loaded in report.items() if name != head for parameter in loaded.parameters}
    return set(report[head].parameters) <= others


def checkpoint_metas(model_config: Any) -> list[ParamMeta]:
    """The checkpoint's tensors. Raises OSError, SourceError or ValueError when they are unknown."""
    try:
        return find_checkpoint(model_config.model, model_config.revision).metadata()
    except (OSError, SourceError, ValueError) as missing:
        try:
            return configured_metas(model_config.hf_config, model_config.dtype)
        except (OSError, SourceError, ValueError) as error:
            raise SourceError(f"{missing}; and its configuration does not list its tensors: {error}") from error


def configured_metas(hf_config: Any, dtype: Any) -> list[ParamMeta]:
    """The tensors that transformers would save of a causal model of this configuration. None is allocated.

    Raises SourceError when transformers has no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from sync.weights.module_source import open_module

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
        metas = open_module(model).metadata()
    except (ImportError, KeyError, RuntimeError, ValueError) as error:
        raise SourceError(f"transformers cannot build the model: {error}") from error
    return [meta for meta in metas if not (meta.name == HEAD and getattr(hf_config, "tie_word_embeddings", False))]
