import pytest
import torch

from sync.weights.aligned_source import AlignedSource, aligned
from sync.weights.sources import TensorSource
from sync.weights.weight_source import ParamMeta, WeightSource

ODD = {
    "half": torch.randn(3, 5).half(),
    "float": torch.randn(7),
    "byte": torch.arange(3, dtype=torch.uint8),
    "long": torch.arange(5),
    "scalar": torch.tensor(0.5).bfloat16(),
    "empty": torch.empty(0, 4),
}


def offsets(source: WeightSource) -> list[tuple[int, int]]:
    """For each tensor: its offset in a packed buffer, and its item size."""
    placed, end = [], 0
    for _, tensor in source:
        placed.append((end, tensor.dtype.itemsize))
        end += tensor.nbytes
    return placed


def test_every_tensor_lies_at_a_multiple_of_its_item_size():
    assert any(offset % size for offset, size in offsets(TensorSource(ODD)))
    source = aligned(TensorSource(ODD))
    assert all(offset % size == 0 for offset, size in offsets(source))
    assert source.metadata() == [ParamMeta.of(*pair) for pair in source]
    assert {name: tensor.tolist() for name, tensor in source} == {name: t.tolist() for name, t in ODD.items()}


def test_order_among_equal_widths_is_the_sources():
    assert [name for name, _ in AlignedSource(TensorSource(ODD))] == [
        *("long", "float", "empty", "half", "scalar", "byte")
    ]


@pytest.mark.parametrize(
    "tensors",
    [{}, {"a": torch.zeros(3).half(), "b": torch.zeros(5).half()}, {"a": torch.zeros(4).half(), "b": torch.zeros(3)}],
)
def test_a_source_whose_order_does_is_left_alone(tensors):
    source = TensorSource(tensors)
    assert aligned(source) is source
