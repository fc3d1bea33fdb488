"""A random 2-layer Llama with SmolLM2's tokenizer, for tests and for benchmarks of serving.

`python -m tritonlive.launch.tiny_model --output DIR --tokenizer DIR --seed N` builds one; `tiny_model()` caches it.
"""

import argparse
from pathlib import Path

from .default_model import default_model
from .model_cache import build_once

LAYOUT = "v1"
"""Change it with anything below that changes the checkpoint: it is part of the cache's path."""


def tiny_model(cache_dir: Path, *, seed: int = 0) -> Path:
    """Directory of the checkpoint, which the first call builds. The same seed gives the same weights."""
    arguments = ("--tokenizer", str(default_model(cache_dir)), "--seed", str(seed))
    return build_once(
        cache_dir / "models" / f"tiny-llama-{LAYOUT}-seed{seed}", "tritonlive.launch.tiny_model", arguments
    )


def build(output: Path, tokenizer_dir: Path, seed: int) -> None:
    """Write the checkpoint: 3.2 M bfloat16 parameters, tied embeddings, a vocabulary as large as the tokenizer's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Larger than usual, so that the logits of a random model differ enough for stable greedy decoding.
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    build(args.output, args.tokenizer, args.seed)
