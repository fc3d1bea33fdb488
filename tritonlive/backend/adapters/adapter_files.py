"""A pushed adapter's two files, as PEFT writes them: checks them, and writes them where vLLM's workers read them.

vLLM checks an adapter's configuration and the kinds of its modules. But it copies a tensor of any shape that is not too
large, and ignores a module that the model does not have. Both would give wrong answers, so both are checked here.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load

from tritonlive.backend.tensors import BadTensor
from tritonlive.backend.vllm_seam.arguments import is_base_embedding_weights
from tritonlive.wire.limits import MAX_ADAPTER_BYTES
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS, CONTROL_PAYLOAD

TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?P<end>\.weight)?"
)
SHOWN_PROBLEMS = 20

Shape = tuple[int, ...]
Modules = dict[str, dict[str, torch.Tensor]]
"""Module name → its "A" [rank, in] and "B" [out, rank]; of an embedding "A" [rank, rows] and "B" [columns, rank]."""


def check_digest(payload: bytes, digest: str | None) -> str:
    """The payload's XXH3 (64 bits) in hexadecimal. Raises BadTensor if it is not `digest`, or the payload too large."""
    if len(payload) > MAX_ADAPTER_BYTES:
        raise BadTensor(CONTROL_PAYLOAD, f"{len(payload)} bytes; an adapter may have at most {MAX_ADAPTER_BYTES}")
    actual = xxhash.xxh3_64_hexdigest(payload)
    if digest is not None and actual != digest.lower():
        raise BadTensor(CONTROL_PAYLOAD, "the digest does not match: the bytes changed in transit")
    return actual


def check(payload: bytes, config: Mapping[str, Any], parameters: Iterable[Mapping[str, Any]] | None) -> int:
    """Check adapter_model.safetensors (`payload`) and adapter_config.json (`config`). Returns the number of tensors.

    parameters: the checkpoint's (weights/checkpoint.py); None if they cannot be read. Raises BadTensor with all
    problems.
    """
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1 or not isinstance(config.get("lora_alpha"), int | float):
        raise BadTensor(CONTROL_ARGUMENTS, "of stage_adapter: config must have r (an integer) and lora_alpha")
    try:
        tensors = load(payload)
    except (SafetensorError, ValueError) as error:
        raise BadTensor(CONTROL_PAYLOAD, f"is not a safetensors file: {error}") from None
    modules, problems = sort_by_module(tensors)
    problems += [f"{name}: holds NaN or Inf" for name, tensor in tensors.items() if not is_finite(tensor)]
    problems += wrong_ranks(modules, None if config.get("rank_pattern") else rank)
    if parameters is not None:
        problems += shape_mismatches(modules, parameters)
    if not modules and not problems:
        problems = ["no tensors in it"]
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise BadTensor(CONTROL_PAYLOAD, "; ".join(problems[:SHOWN_PROBLEMS]) + more)
    return len(tensors)


def write(folder: Path, payload: bytes, config: Mapping[str, Any]) -> None:
    """Write both files into a new folder that only this user can read."""
    folder.mkdir(mode=0o700)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(payload)


def sort_by_module(tensors: Mapping[str, torch.Tensor]) -> tuple[Modules, list[str]]:
    """Tensors by module and side, and a problem for each name that PEFT does not give a LoRA tensor."""
    modules: Modules = defaultdict(dict)
    problems: list[str] = []
    for name, tensor in tensors.items():
        if is_base_embedding_weights(name):  # PEFT saves them with an adapter of an embedding; vLLM has them
            continue
        match = TENSOR.fullmatch(name)
        if match is None or bool(match["kind"]) == bool(match["end"]):
            problems.append(f"{name}: not a name that PEFT gives a LoRA tensor (….lora_A.weight, ….lora_B.weight)")
        else:
            modules[match["module"]][match["side"]] = tensor
    return modules, problems


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or Inf."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def wrong_ranks(modules: Modules, rank: int | None) -> list[str]:
    """A problem for each module that lacks a side, or whose rank is not `rank` (None: ranks may differ)."""
    problems: list[str] = []
    for module, sides in modules.items():
        if sides.keys() != {"A", "B"}:
            problems.append(f"{module}: has lora_{''.join(sides)} alone; both lora_A and lora_B are needed")
        elif ".experts" not in module:  # fused experts are stacked in one tensor
            a, b = sides["A"], sides["B"]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or rank not in (None, a.shape[0]):
                wanted = "one rank" if rank is None else f"rank {rank}, as the config's r says"
                problems.append(f"{module}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}; expected {wanted}")
    return problems


def shape_mismatches(modules: Modules, parameters: Iterable[Mapping[str, Any]]) -> list[str]:
    """A problem for each module that is not in the checkpoint, or whose weight has another shape there.

    Modules that the checkpoint names differently, or stores quantized, are left to vLLM.
    """
    shapes: dict[str, set[Shape]] = defaultdict(set)
    leaf_names: set[str] = set()
    for parameter in parameters:
        module, _, what = parameter["name"].rpartition(".")
        if what == "weight" and "float" in parameter["dtype"] and len(parameter["shape"]) == 2:
            shapes[layer_key(module)].add(tuple(parameter["shape"]))
            leaf_names.add(leaf_name(module))
    problems: list[str] = []
    for module, sides in modules.items():
        if ".experts" in module or sides.keys() != {"A", "B"} or leaf_name(module) not in leaf_names:
            continue
        served = shapes.get(layer_key(module))
        fits = (sides["B"].shape[0], sides["A"].shape[-1])
        if served is None:
            problems.append(f"{module}: the served model has no such layer")
        # Transposed shapes fit as well: embeddings, and GPT-2's layers, are stored transposed.
        elif fits not in served and fits[::-1] not in served:
            shown = " or ".join(str(list(shape)) for shape in sorted(served))
            problems.append(f"{module}: made for a weight of shape {list(fits)}; the served model's is {shown}")
    return problems


def layer_key(module: str) -> str:
    """The part of a module's name that checkpoint and trainer share: from "layers." on, else the leaf name."""
    start = module.rfind("layers.")
    return module[start:] if start >= 0 else leaf_name(module)


def leaf_name(module: str) -> str:
    """The last part of a dotted name."""
    return module.rpartition(".")[2]
