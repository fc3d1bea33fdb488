"""Writes random bfloat16 checkpoints as large as real models. The cost of a push does not depend on the values.

`python -m bench.random_checkpoint SIZE FOLDER` writes a configuration without weights, for `--load-format dummy`.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.default_model import default_model

SHARD_BYTES = 4 * 2**30
BLOCK_ELEMENTS = 2**24
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Size:
    """The layout of a Qwen2.5 model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


SIZES = {
    "0.5b": Size(896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "7b": Size(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False),
}

# Served models sample from their whole vocabulary, so it must be that of the tokenizer.
TOKENIZER_VOCABULARY = 49152
SERVED_SIZES = {
    "0.6b": Size(1024, 4864, 28, 16, 8, TOKENIZER_VOCABULARY, tie_word_embeddings=True),
    "7b": replace(SIZES["7b"], vocab_size=TOKENIZER_VOCABULARY),
}
"""Sizes of models that are served with dummy weights."""


def write_config(folder: Path, size: Size, tokenizer_dir: Path) -> Any:
    """Write the configuration and the tokenizer; returns the configuration."""
    from transformers import Qwen2Config

    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen2Config(**vars(size), dtype="bfloat16", architectures=["Qwen2ForCausalLM"])
    config.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            (folder / name).write_bytes((tokenizer_dir / name).read_bytes())
    return config


def random_checkpoint(folder: Path, size: Size, tokenizer_dir: Path) -> Path:
    """Write the checkpoint unless it exists: config, tokenizer, and safetensors files of at most 4 GiB."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return folder
    from safetensors.torch import save_file
    from transformers import Qwen2ForCausalLM

    config = write_config(folder, size, tokenizer_dir)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if size.tie_word_embeddings:
        del shapes["lm_head.weight"]
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards(shapes), 1):
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    total = sum(2 * shape.numel() for shape in shapes.values())
    index.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )  # written last: it marks a complete checkpoint
    return folder


def shards(shapes: dict[str, torch.Size], shard_bytes: int = SHARD_BYTES) -> Iterator[dict[str, torch.Tensor]]:
    """Random tensors, grouped by file."""
    block = (torch.randn(BLOCK_ELEMENTS) * 0.02).bfloat16()
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        num_elements = shape.numel()
        if tensors and sum(tensor.nbytes for tensor in tensors.values()) + 2 * num_elements > shard_bytes:
            yield tensors
            tensors = {}
        repeats = -(-num_elements // BLOCK_ELEMENTS)
        tensors[name] = block.repeat(repeats)[:num_elements].clone().view(shape)
    yield tensors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.random_checkpoint", description="A model without weights.")
    parser.add_argument("size", choices=SERVED_SIZES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_config(arguments.folder, SERVED_SIZES[arguments.size], default_model(default_cache_dir()))


if __name__ == "__main__":
    main()
