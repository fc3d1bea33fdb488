"""A second look at weights after they were read."""

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source
from sync.weights.samples import MAX_SAMPLES, sample
from sync.weights.weight_source import ParamMeta


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(40, 50)
        self.b = torch.nn.Linear(50, 2, bias=False)


def fitted(weights):
    source = open_source(weights)
    return fit(source, ServedModel("r", {meta.name: meta for meta in source.metadata()}))


def step(model: Any, *parameters: torch.nn.Parameter) -> None:
    optimizer = torch.optim.AdamW(parameters or model.parameters(), lr=0.01)
    model.b(model.a(torch.randn(3, 40))).square().sum().backward()
    optimizer.step()


def test_a_step_while_the_weights_are_read_shows_in_what_was_read_before_it():
    model = Model()
    source = fitted(model)
    assert source.changed() == []
    tensors = iter(source)
    next(tensors), next(tensors)
    step(model)
    list(tensors)
    assert source.changed() == ["a.weight", "a.bias"]


def test_only_the_tensors_that_changed_are_named():
    model = Model().bfloat16().float()
    source = fitted(model.state_dict())
    list(source)
    assert source.changed() == []
    step(model, model.a.bias)
    assert source.changed() == ["a.bias"]


def test_the_next_push_looks_anew():
    model = Model()
    source = fitted(model)
    list(source)
    step(model)
    assert source.changed() != []
    list(source)
    assert source.changed() == []


def test_what_cannot_change_or_cannot_be_seen_again(weights, tmp_path):
    stream = fit(
        open_source(iter(weights.items())), ServedModel("r", {n: ParamMeta.of(n, t) for n, t in weights.items()})
    )
    list(stream)
    assert stream.changed() == []


def test_nan_equals_itself():
    weights = {"a": torch.full((4,), float("nan"))}
    source = fitted(weights)
    list(source)
    assert source.changed() == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3000, 7),
        torch.randn(7, 3000).T,
        torch.randn(10, 10, 50).transpose(0, 2)[::2],
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.arange(5000),
        torch.randn(64, 64).to(torch.float8_e4m3fn),
        torch.ones(9, dtype=torch.bool),
    ],
)
def test_a_sample_is_small_spread_and_stable(tensor):
    first = sample(tensor)
    assert first.dtype == torch.uint8
    assert (
        first.numel()
        == min(tensor.numel(), -(-tensor.numel() // max(1, tensor.numel() // MAX_SAMPLES))) * (tensor.element_size())
        or first.numel() == MAX_SAMPLES * tensor.element_size()
    )
    assert torch.equal(first, sample(tensor.clone()))


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Replicate()])
def test_local_shards_of_dtensors_are_looked_at(mesh, placement):
    own = torch.randn(8, 4)
    weights = {"w": DTensor.from_local(own, mesh, [placement])}
    source = fitted(weights)
    ((_, tensor),) = source
    assert torch.equal(tensor, own)
    assert source.changed() == []
    own.add_(1)
    assert source.changed() == ["w"]
