"""Child process of test_loaded_parameters.py: `parameters` of tiny models that vLLM serves.

loaded_models.py FOLDER RESULT.json
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory

from sync.weights.digest import tensor_digest
from sync.worker.loaded_parameters import UntraceableError, loaded_parameters
from sync.worker.served_parameters import checkpoint_metas, weight_parameters

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
LAYER = "model.layers.1."


class Look:
    """A worker's description of its model, and whether describing changed the model. Runs in the worker."""

    def __init__(self, vllm_config: Any) -> None:
        self._vllm_config = vllm_config

    def __call__(self, model: Any) -> dict[str, Any]:
        before = fingerprint(model)
        answer = weight_parameters(model, self._vllm_config)
        answer["is_untouched"] = fingerprint(model) == before
        held = {str(tensor.dtype) for tensor in model.state_dict().values()}
        return answer | {"held": sorted(held)}


class Fail:
    """Traces with a loader that breaks half-way, and with one that looks at values; run inside the worker."""

    def __init__(self, vllm_config: Any) -> None:
        self._vllm_config = vllm_config

    def __call__(self, model: Any) -> dict[str, Any]:
        before, load_weights = fingerprint(model), type(model).load_weights

        def breaks(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
            load_weights(model, list(weights)[:3])
            raise RuntimeError("the loader broke")

        def looks(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
            for _, tensor in weights:
                if tensor.sum() > 0:
                    return

        def writes(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
            model.beside.copy_(next(iter(weights))[1].new_empty(3))

        reasons = {}
        metas = checkpoint_metas(self._vllm_config.model_config)
        for name, loader in (("breaks", breaks), ("looks", looks), ("writes", writes)):
            model.beside = torch.ones(3)
            model.load_weights = loader
            try:
                loaded_parameters(model, metas)
            except UntraceableError as error:
                reasons[name] = str(error)
            finally:
                del model.load_weights
            reasons[f"{name}_beside"] = model.beside.tolist()
            del model.beside
        return {"reasons": reasons, "is_untouched": fingerprint(model) == before}


def fingerprint(model: Any) -> list[Any]:
    """Every layer's tensors: objects, addresses, bytes, attributes, order, and which buffers are not persistent."""
    found: list[Any] = []
    for path, layer in model.named_modules():
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(layer, kind).items():
                known = () if tensor is None else (id(tensor), tensor.data_ptr(), tensor_digest(tensor.detach()))
                attributes = sorted((key, id(value)) for key, value in getattr(tensor, "__dict__", {}).items())
                found.append((path, kind, name, known, attributes))
        found.append((path, sorted(layer.__dict__), sorted(layer._non_persistent_buffers_set)))
    return found


def save(model: PreTrainedModel, folder: Path, **more: torch.Tensor) -> Path:
    """A bfloat16 checkpoint, except for the tensors in `more`."""
    model.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(load_file(path) | more, path, {"format": "pt"})
    return folder


def llama(folder: Path, *, tied: bool) -> Path:
    config = LlamaConfig(tie_word_embeddings=tied, architectures=["LlamaForCausalLM"], **SIZES)
    return save(LlamaForCausalLM(config), folder)


def tied_with_head(folder: Path) -> Path:
    """A tied model whose checkpoint also has its head, like many fine-tuned ones."""
    llama(folder, tied=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def qwen3_moe(folder: Path) -> Path:
    more = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    return save(Qwen3MoeForCausalLM(Qwen3MoeConfig(architectures=["Qwen3MoeForCausalLM"], **SIZES, **more)), folder)


def glm4_moe(folder: Path) -> Path:
    """Its routing bias is float32 whatever the rest is, and its checkpoint has a head for speculation (layer 2)."""
    more = {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
    }
    config = Glm4MoeConfig(architectures=["Glm4MoeForCausalLM"], **SIZES, **more)
    bias = {f"{LAYER}mlp.gate.e_score_correction_bias": torch.tensor([7.3012, 7.3019, 7.3031, 7.3044])}
    mtp = {"model.layers.2.eh_proj.weight": torch.ones(64, 128, dtype=torch.bfloat16)}
    return save(Glm4MoeForCausalLM(config), folder, **bias, **mtp)


def int8_llama(folder: Path) -> Path:
    """Compressed-tensors W8A8: int8 weights, a scale for each row."""
    llama(folder, tied=False)
    path, quantized = folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        if "_proj.weight" in name:
            scale = tensor.float().abs().amax(1, keepdim=True) / 127
            quantized[name] = (tensor.float() / scale).round().to(torch.int8)
            quantized[f"{name}_scale"] = scale.bfloat16()
        else:
            quantized[name] = tensor
    save_file(quantized, path, {"format": "pt"})
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bare(folder: Path) -> Path:
    """A configuration without weights."""
    qwen3_moe(folder)
    (folder / "model.safetensors").unlink()
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "tied": (lambda folder: llama(folder, tied=True), {}),
    "tied_with_head": (tied_with_head, {}),
    "untied": (lambda folder: llama(folder, tied=False), {}),
    "qwen3_moe": (qwen3_moe, {}),
    "glm4_moe": (glm4_moe, {}),
    "int8": (int8_llama, {}),
    "online": (lambda folder: llama(folder, tied=False), {"quantization": "fp8_per_channel"}),
    "dummy": (bare, {"load_format": "dummy"}),
}


def look(model: Path, options: dict[str, Any], name: str) -> dict[str, Any]:
    llm = LLM(
        str(model),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        skip_tokenizer_init=True,
        **options,
    )
    vllm_config = llm.llm_engine.vllm_config
    (answer,) = llm.apply_model(Look(vllm_config))
    if name == "untied":
        (answer["failures"],) = llm.apply_model(Fail(vllm_config))
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return answer


def main(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for name, (make, options) in MODELS.items():
        found[name] = look(make(folder / name), options, name)
    return found


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(result))
