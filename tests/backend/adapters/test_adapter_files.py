"""tritonlive/backend/adapters/adapter_files.py: invalid adapters are refused before vLLM sees them."""

import json
import stat
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save

from tritonlive.backend.adapters import adapter_files
from tritonlive.backend.adapters.adapter_files import write
from tritonlive.backend.tensors import BadTensor

CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
SHAPES = {"self_attn.q_proj": [8, 4], "mlp.down_proj": [4, 6]}
PARAMETERS = [
    {"name": f"model.layers.{layer}.{module}.weight", "dtype": "float", "shape": shape}
    for layer in range(2)
    for module, shape in SHAPES.items()
] + [{"name": "model.embed_tokens.weight", "dtype": "float", "shape": [10, 4]}]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def tensors(rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight": torch.ones(shape)
        for layer in range(2)
        for module, (rows, columns) in SHAPES.items()
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank)))
    }


def check(changed: Mapping[str, torch.Tensor | None] | None = None, **options: Any) -> int:
    given = {name: tensor for name, tensor in (tensors() | dict(changed or {})).items() if tensor is not None}
    payload = options.pop("payload", None) or save(given)
    values: dict[str, Any] = {"digest": None, "config": CONFIG, "parameters": PARAMETERS} | options
    adapter_files.check_digest(payload, values.pop("digest"))
    return adapter_files.check(payload, **values)


def test_a_good_one_passes() -> None:
    assert check() == 8
    assert check(digest=xxhash.xxh3_64_hexdigest(save(tensors()))) == 8
    assert check(parameters=None) == 8
    embedding = "base_model.model.model.embed_tokens"
    whole = {f"{embedding}.lora_embedding_A": torch.ones(2, 10), f"{embedding}.lora_embedding_B": torch.ones(4, 2)}
    assert check(whole) == 10
    assert check({f"{embedding}.base_layer.weight": torch.ones(10, 4)}) == 9, "as PEFT saves them"


def test_a_trainer_may_have_more_around_the_layers_than_the_checkpoint() -> None:
    renamed = {name.replace("model.model.layers", "model.language_model.layers"): t for name, t in tensors().items()}
    assert check(payload=save(renamed)) == 8


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({f"{Q}.lora_A.weight": torch.tensor([[1.0, 2, 3, float("nan")]] * 2)}, f"{Q}.lora_A.weight: holds NaN or Inf"),
        ({f"{Q}.lora_B.weight": torch.full((8, 2), torch.inf, dtype=torch.bfloat16)}, "lora_B.weight: holds NaN"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 3)}, r"q_proj: made for a weight of shape \[8, 3\]; .* \[8, 4\]"),
        ({f"{Q}.lora_B.weight": torch.ones(7, 2)}, r"q_proj: made for a weight of shape \[7, 4\]"),
        ({f"{Q}.lora_B.weight": torch.ones(8, 3)}, r"lora_A is \[2, 4\] and lora_B \[8, 3\]; expected rank 2"),
        ({f"{Q}.lora_B.weight": torch.ones(16)}, r"lora_B \[16\]"),
        ({f"{Q}.lora_B.weight": None}, "q_proj: has lora_A alone"),
        ({f"{Q.replace('.0.', '.7.')}.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}, "layers.7.* no such layer"),
        ({f"{Q}.lora_A.default.weight": torch.ones(2, 4)}, "lora_A.default.weight: not a name that PEFT gives"),
        ({"score.weight": torch.ones(2, 4)}, "score.weight: not a name"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, torch.Tensor | None], problem: str) -> None:
    with pytest.raises(BadTensor, match=problem):
        check(changed)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(BadTensor) as caught:
        check({name: tensor * torch.nan for name, tensor in tensors().items()})
    assert str(caught.value).count("holds NaN") == 8


def test_the_rank_of_the_config_counts_unless_modules_have_their_own() -> None:
    with pytest.raises(BadTensor, match="expected rank 4, as the config's r says"):
        check(config=CONFIG | {"r": 4})
    assert check(config=CONFIG | {"r": 4, "rank_pattern": {"q_proj": 2, "down_proj": 2}}) == 8


@pytest.mark.parametrize("config", [{}, {"r": 0, "lora_alpha": 1}, {"r": "8", "lora_alpha": 1}, {"r": 8}])
def test_a_config_without_rank_and_alpha(config: dict[str, Any]) -> None:
    with pytest.raises(BadTensor, match="config must have r"):
        check(config=config)


def test_bytes_that_are_no_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    for payload in (b"x", b"\x80\x04", save(tensors())[:-1]):
        with pytest.raises(BadTensor, match="control_payload: is not a safetensors file"):
            check(payload=payload)
    with pytest.raises(BadTensor, match="no tensors"):
        check(payload=save({}))
    with pytest.raises(BadTensor, match="the digest does not match"):
        check(digest="0" * 16)
    monkeypatch.setattr(adapter_files, "MAX_ADAPTER_BYTES", 10)
    with pytest.raises(BadTensor, match="an adapter may have at most 10"):
        check()


def test_nobody_else_reads_the_files(tmp_path: Any) -> None:
    folder = tmp_path / "1"
    write(folder, b"bytes", CONFIG)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "adapter_model.safetensors").read_bytes() == b"bytes"
    assert json.loads((folder / "adapter_config.json").read_text()) == CONFIG
