"""Tiny checkpoints of the kinds that a push must get right.

`python -m tests.matrix.models --kind KIND --output DIR --tokenizer DIR` builds one; `tiny_checkpoint()` is cached.
"""

import argparse
from pathlib import Path
from typing import Any

from tritonlive.launch.default_model import default_model
from tritonlive.launch.model_cache import build_once

GENERATING = ("tied", "untied", "moe", "float32-parameters")
POOLING = ("embedder", "encoder", "cross-encoder", "classifier")
KINDS = GENERATING + POOLING
LAYOUT = "v1"
"""Part of the cache's path. Change it with anything below that changes a checkpoint."""


def tiny_checkpoint(cache_dir: Path, kind: str) -> Path:
    """Directory of the checkpoint; built on the first call."""
    arguments = ("--tokenizer", str(default_model(cache_dir)), "--kind", kind)
    return build_once(cache_dir / "models" / f"tiny-{kind}-{LAYOUT}", "tests.matrix.models", arguments)


def build(output: Path, tokenizer_dir: Path, kind: str) -> None:
    """Write a checkpoint with random weights, large enough that logprobs tell models apart; most are bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        Glm4MoeConfig,
        Glm4MoeForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    experts = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    model: Any
    if kind == "moe":
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=4, tie_word_embeddings=False, **sizes, **experts))
    elif kind == "float32-parameters":
        # Its routing bias is float32 whatever the rest is.
        config = Glm4MoeConfig(
            n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1, n_shared_experts=1, **sizes, **experts
        )
        model = Glm4MoeForCausalLM(config)
    elif kind == "embedder":
        model = Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **sizes))
    elif kind in POOLING:
        labels = {"cross-encoder": 1, "classifier": 3}
        bert = BertConfig(**sizes)
        bert.num_labels = labels.get(kind, 2)
        model = BertForSequenceClassification(bert) if kind in labels else BertModel(bert)
    else:
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=kind == "tied", **sizes))
    model.to(torch.float32 if kind in POOLING else torch.bfloat16).save_pretrained(output)
    if kind == "float32-parameters":
        path = output / "model.safetensors"
        biases = {
            name: torch.rand(4) * 0.01 + 7 for name in load_file(path) if name.endswith("e_score_correction_bias")
        }
        save_file(load_file(path) | biases, path, {"format": "pt"})
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, required=True)
    args = parser.parse_args()
    build(args.output, args.tokenizer, args.kind)
