"""Pairs that are read while they are sent."""

import pytest
import torch

from sync import SourceError
from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source
from sync.weights.sources import StreamSource
from sync.weights.weight_source import ParamMeta


def served(weights) -> ServedModel:
    return ServedModel("replica", {name: ParamMeta.of(name, tensor) for name, tensor in weights.items()})


def test_a_generator_with_one_buffer_is_read_tensor_by_tensor():
    """An export like Megatron-Bridge's and verl's: each tensor is consumed before the next one replaces it."""
    buffer = torch.empty(4)
    wanted = {f"layers.{i}.w": torch.full((4,), float(i)) for i in range(3)}

    def export():
        for i, name in enumerate(wanted):
            yield name, buffer.fill_(i)

    found = {name: tensor.clone() for name, tensor in fit(open_source(export()), served(wanted))}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_nothing_is_read_before_it_is_asked_for(weights):
    read = []

    def export():
        for name, tensor in weights.items():
            read.append(name)
            yield name, tensor

    fitted = fit(open_source(export()), served(weights))
    assert fitted.num_bytes == sum(tensor.nbytes for tensor in weights.values())
    assert read == []
    next(iter(fitted))
    assert read == [next(iter(weights))]


def test_metadata_is_the_served_models_and_the_order_the_streams(weights):
    backwards = dict(reversed(weights.items()))
    fitted = fit(open_source(pair for pair in backwards.items()), served(weights))
    assert [meta.name for meta in fitted.metadata()] == list(weights)
    assert [name for name, _ in fitted] == list(backwards)


def test_backends_that_need_the_order_refuse_a_stream(weights):
    with pytest.raises(SourceError, match="backend nccl needs names and shapes in the order"):
        fit(StreamSource(weights.items()), served(weights)).require_order("nccl")
    with pytest.raises(SourceError, match="no metadata before it is read"):
        StreamSource(weights.items()).metadata()
    fit(open_source(weights), served(weights)).require_order("nccl")


def test_a_tensor_that_is_cast_and_names_under_wrappers(weights):
    pairs = ((f"module._orig_mod.{name}", tensor.double()) for name, tensor in weights.items() if "counts" not in name)
    floats = {name: tensor for name, tensor in weights.items() if "counts" not in name}
    assert {name: tensor.dtype for name, tensor in fit(open_source(pairs), served(floats))} == {
        name: tensor.dtype for name, tensor in floats.items()
    }


def test_an_unknown_name_ends_the_push(weights):
    for name, reason in (
        ("extra", "extra: not a tensor"),
        ("base_model.model.x.lora_A.default.weight", "un-merged PEFT"),
    ):
        with pytest.raises(SourceError, match=reason):
            list(fit(StreamSource([*weights.items(), (name, torch.ones(1))]), served(weights)))


def test_an_iterator_is_read_once_and_a_function_as_often_as_wanted(weights):
    once = fit(open_source(iter(weights.items())), served(weights))
    assert len(list(once)) == len(weights)
    with pytest.raises(SourceError, match=r"read by an attempt before; pass StreamSource\(f\)"):
        list(once)
    again = fit(StreamSource(lambda: iter(weights.items())), served(weights))
    assert len(list(again)) == len(list(again)) == len(weights)


@pytest.mark.parametrize("bad", [[3], ["ab"], [("a", torch.ones(1), 3)], [("a", 3)], [(3, torch.ones(1))]])
def test_what_are_no_pairs(bad):
    with pytest.raises(SourceError, match=r"pairs of name and tensor|expected names and tensors"):
        list(StreamSource(each for each in bad))


def test_a_shard_is_gathered(weights):
    class Shard(torch.Tensor):
        def full_tensor(self):
            return self.as_subclass(torch.Tensor) + 1

    ((name, tensor),) = fit(StreamSource([("a", torch.zeros(2).as_subclass(Shard))]), served({"a": torch.zeros(2)}))
    assert (name, tensor.tolist()) == ("a", [1, 1])
