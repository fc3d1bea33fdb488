"""The weights that the sequences push: state dicts derived from one tiny checkpoint, and their reference digests."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.weight_checksum import compute_tensor_digests

from sync.weights.digest import digest, tensor_digest
from sync.weights.weight_source import ParamMeta
from sync.worker.weight_history import HistoryEntry

NUM_CONTENTS = 6
CHECKPOINT_FILE = "model.safetensors"


@dataclass(frozen=True)
class Content:
    """One set of weights, in the checkpoint's layout."""

    name: str
    tensors: Mapping[str, torch.Tensor]

    @cached_property
    def digest(self) -> str:
        """Digest that a worker's history computes of these tensors."""
        digests = {ParamMeta.of(name, tensor): tensor_digest(tensor) for name, tensor in self.tensors.items()}
        return HistoryEntry("", digests, None, ()).digest

    def __repr__(self) -> str:
        return self.name


def write_tiny_checkpoint(folder: Path) -> None:
    """A random Llama: vocabulary 512, hidden size 64, 2 layers, float32, head tied to the embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def read_contents(folder: Path) -> list[Content]:
    """The checkpoint's weights, and others: each tensor differs between any two contents."""
    original = load_file(folder / CHECKPOINT_FILE)
    contents = [Content("c0", original)]
    for number in range(1, NUM_CONTENTS):
        generator = torch.Generator().manual_seed(number)
        changed = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in original.items()
        }
        contents.append(Content(f"c{number}", changed))
    return contents


def merge(base: Content, part: Content, names: frozenset[str]) -> Content:
    """`base` with the named tensors of `part`."""
    tensors = {name: part.tensors[name] if name in names else tensor for name, tensor in base.tensors.items()}
    return Content(f"{base}+{part}[{len(names)}]", tensors)


def write_checkpoint(folder: Path, content: Content) -> None:
    """Overwrite the checkpoint on disk, like a trainer that saves into the same folder."""
    temporary = folder / ".incoming"
    save_file(dict(content.tensors), temporary)
    temporary.replace(folder / CHECKPOINT_FILE)


def loaded_digest(model: torch.nn.Module) -> str:
    """Digest of everything the model computes with: parameters, and on a CPU the packed copies that replace them.

    vLLM's CPU build drops a linear layer's weight after packing it, so that vLLM's own digests of parameters do not see
    it. The layer's product with the identity is the weight, transposed, whatever it is packed in.
    """
    parts = sorted(compute_tensor_digests(model).items())
    for name, module in model.named_modules():
        if hasattr(module, "cpu_linear"):
            identity = torch.eye(num_inputs(module))
            product = module.cpu_linear(identity, module.weight, None).contiguous()
            parts.append((f"{name}.cpu_linear", f"{digest(product.view(-1).view(torch.uint8)):016x}"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def num_inputs(module: Any) -> int:
    return module.input_size_per_partition if isinstance(module, LinearBase) else module.embedding_dim
