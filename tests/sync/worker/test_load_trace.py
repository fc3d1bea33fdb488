"""Traces of the ways in which a model's loader copies a checkpoint's tensors into its parameters."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info, record_metadata_for_reloading

from sync.weights.weight_source import ParamMeta
from sync.worker.loaded_parameters import LoadedParameter, UntraceableError, loaded_parameters

Weights = Iterable[tuple[str, torch.Tensor]]


class Model(torch.nn.Module):
    """One float32 vector, one bfloat16 matrix, a buffer; `how` loads a tensor into a parameter."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(4))
        self.layer = torch.nn.Linear(4, 6, bias=False, dtype=torch.bfloat16)
        self.layer.register_buffer("table", torch.arange(3), persistent=False)
        self._how = how
        record_metadata_for_reloading(self)

    def load_weights(self, weights: Weights) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            if name in parameters:
                self._how(parameters[name], tensor)


A, W, OTHER = (
    ParamMeta("a", "bfloat16", (4,)),
    ParamMeta("layer.weight", "float32", (6, 4)),
    ParamMeta("mtp", "bfloat16", (2,)),
)
EXACT = {"a": LoadedParameter("float32", ("a",)), "layer.weight": LoadedParameter("bfloat16", ("layer.weight",))}
WIDE = EXACT | {"layer.weight": LoadedParameter("float32", ("layer.weight",))}


def by_rows(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    for row in range(tensor.shape[0]):
        parameter.data[row].copy_(tensor.narrow(0, row, 1)[0])


def by_attribute(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    parameter.data = tensor


@pytest.mark.parametrize(
    ("how", "found"),
    [
        (lambda parameter, tensor: parameter.data.copy_(tensor), EXACT),
        (by_rows, EXACT),
        (lambda parameter, tensor: parameter.data.copy_(tensor.to(parameter.dtype)), EXACT),
        (lambda parameter, tensor: parameter.data.copy_(torch.stack(list(tensor.clone().unbind()))), EXACT),
        (lambda parameter, tensor: parameter.data.copy_(torch.cat(tensor.chunk(2))), EXACT),
        (lambda parameter, tensor: parameter.data.copy_(torch.empty_like(tensor).copy_(tensor)), EXACT),
        # The float32 values make another result than their bfloat16 roundings: they travel whole.
        (lambda parameter, tensor: parameter.data.copy_(-tensor.float().exp()), WIDE),
        (lambda parameter, tensor: parameter.data.zero_().add_(tensor), WIDE),
    ],
)
def test_what_is_copied_and_what_is_computed(how, found):
    assert loaded_parameters(Model(how), [A, W, OTHER]) == found


def test_an_operation_that_writes_its_result_into_a_parameter():
    metas = [ParamMeta("a", "float32", (4,)), ParamMeta("layer.weight", "bfloat16", (6, 4))]
    assert loaded_parameters(Model(lambda parameter, tensor: torch.mul(tensor, 2, out=parameter.data)), metas) == EXACT


def test_one_value_is_read_and_filled_in():
    class Scalar(Model):
        def __init__(self) -> None:
            super().__init__(lambda parameter, tensor: parameter.data.fill_(tensor.item()))
            self.a = torch.nn.Parameter(torch.ones(1))
            del self.layer
            record_metadata_for_reloading(self)

    assert loaded_parameters(Scalar(), [ParamMeta("a", "float32", (1,))]) == {"a": LoadedParameter("float32", ("a",))}


def test_several_tensors_of_one_and_one_of_several():
    class Fused(Model):
        def load_weights(self, weights: Weights) -> None:
            own, held = dict(self.named_parameters()), dict(weights)
            own["layer.weight"].data.copy_(torch.cat([held["q"], held["k"]]))
            own["a"].data.copy_(held["both"])
            own["layer.weight"].data[0].copy_(held["both"])

    metas = [ParamMeta("q", "bfloat16", (2, 4)), ParamMeta("k", "bfloat16", (4, 4)), ParamMeta("both", "float32", (4,))]
    assert loaded_parameters(Fused(None), metas) == {
        "q": LoadedParameter("bfloat16", ("layer.weight",)),
        "k": LoadedParameter("bfloat16", ("layer.weight",)),
        "both": LoadedParameter("float32", ("a", "layer.weight")),
    }


def test_tied_parameters_have_one_name():
    class Tied(Model):
        def __init__(self) -> None:
            super().__init__(None)
            self.head = torch.nn.Linear(4, 6, bias=False)
            self.head.weight = self.layer.weight
            record_metadata_for_reloading(self)

        def load_weights(self, weights: Weights) -> None:
            for name, tensor in weights:
                self.get_parameter(name).data.copy_(tensor)

    metas = [A, W, ParamMeta("head.weight", "bfloat16", (6, 4))]
    assert loaded_parameters(Tied(), metas)["head.weight"].parameters == ("layer.weight",)


def test_a_loader_that_reload_has_wrapped_is_the_original_again():
    class Loaders(Model):
        def load_weights(self, weights: Weights) -> None:
            own: dict[str, Any] = dict(self.named_parameters())
            for name, tensor in weights:
                own[name].weight_loader(own[name], tensor)

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        param.data.copy_(loaded_weight)

    model = Loaders(None)
    parameters: list[Any] = list(model.parameters())
    for parameter in parameters:
        parameter.weight_loader = load
    record_metadata_for_reloading(model)
    initialize_layerwise_reload(model)
    wrapped = [parameter.weight_loader for parameter in model.parameters()]  # ty: ignore[missing-attribute]
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.restore_metadata = (dict(layer.named_parameters(recurse=False)), dict(layer.named_buffers(recurse=False)))
        info.reset()
    assert loaded_parameters(model, [A, W]) == EXACT
    assert [parameter.weight_loader for parameter in model.parameters()] == wrapped  # ty: ignore[missing-attribute]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (by_attribute, r"was seen to reach layer\.weight"),
        (lambda parameter, tensor: None, r"was seen to reach layer\.weight"),
        (lambda parameter, tensor: tensor.sum().item(), "meta tensors"),
        (lambda parameter, tensor: torch.from_numpy(tensor.numpy()), "meta"),
    ],
)
def test_what_cannot_be_followed_is_said(how, reason):
    model = Model(how)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    attributes = dict(model.layer.__dict__)
    with pytest.raises(UntraceableError, match=reason):
        loaded_parameters(model, [A, W])
    assert model.layer.__dict__ == attributes
    for name, tensor in model.named_parameters():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_load_that_is_running_is_not_disturbed():
    model = Model(None)
    initialize_layerwise_reload(model)
    tensors = [id(parameter) for parameter in model.parameters()]
    with pytest.raises(UntraceableError, match="a load is running"):
        loaded_parameters(model, [A, W])
    assert [id(parameter) for parameter in model.parameters()] == tensors
