"""Weight sets differ in every tensor, and are staged as a worker stages them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.weights import staged, weight_set


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tensors = {"norm": torch.ones(3, dtype=torch.bfloat16), "layer": torch.randn(5, 7).bfloat16()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_sets_differ_in_every_tensor_and_the_first_is_the_checkpoint(checkpoint: Path):
    original, one, other = (weight_set(checkpoint, seed) for seed in (0, 1, 2))
    assert torch.equal(original["norm"], torch.ones(3, dtype=torch.bfloat16))
    for name, tensor in original.items():
        assert one[name].dtype == tensor.dtype
        assert not torch.equal(one[name], tensor)
        assert not torch.equal(one[name], other[name])
        assert torch.allclose(one[name].float(), tensor.float(), rtol=0.2, atol=0.2)


def test_a_seed_gives_the_same_set_again(checkpoint: Path):
    assert all(
        torch.equal(tensor, weight_set(checkpoint, 1)[name]) for name, tensor in weight_set(checkpoint, 1).items()
    )


def test_staged_tensors_are_equal_and_lie_in_one_piece_of_memory(checkpoint: Path):
    weights = weight_set(checkpoint, 1)
    pairs = dict(staged(weights))
    assert all(torch.equal(pairs[name], tensor) for name, tensor in weights.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in pairs.values()}) == 1
