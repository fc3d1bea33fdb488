"""Where tensors lie in the memory they are staged in."""

import torch

from sync.transport.layout import ALIGNMENT, Layout
from sync.weights.weight_source import ParamMeta


def test_tensors_are_aligned_apart_and_in_order(weights):
    metas = [ParamMeta.of(name, tensor) for name, tensor in weights.items()]
    layout = Layout(metas)
    assert layout.metas == metas
    end = 0
    for offset, size, meta in zip(layout.offsets, layout.sizes, metas, strict=True):
        assert offset % ALIGNMENT == 0
        assert end <= offset < end + ALIGNMENT
        assert size == meta.num_bytes
        end = offset + size
    assert end <= layout.num_bytes < end + ALIGNMENT


def test_views_have_names_dtypes_and_shapes(weights):
    layout = Layout([ParamMeta.of(name, tensor) for name, tensor in weights.items()])
    memory = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    for name, view in layout.view_tensors(memory):
        assert (view.dtype, view.shape) == (weights[name].dtype, weights[name].shape)
        view.copy_(weights[name])
    assert all(torch.equal(view, weights[name]) for name, view in layout.view_tensors(memory))


def test_no_tensors_need_no_memory():
    assert Layout([]).num_bytes == 0
    assert Layout([]).view_tensors(torch.empty(0, dtype=torch.uint8)) == []
