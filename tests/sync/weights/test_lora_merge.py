"""Un-merged PEFT models: the pushed weights compute the same as the trainer's model, which stays unchanged."""

from typing import Any

import pytest
import torch

from sync import SourceError
from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source
from sync.weights.weight_source import ParamMeta
from tests.sync.peft_stand_in import LoraLayer, ModulesToSaveWrapper, PeftModel


class Plain(torch.nn.Module):
    """embed → proj → out → head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.proj = torch.nn.Linear(4, 6)
        self.out = torch.nn.Linear(6, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.out(self.proj(self.embed(ids)).tanh()))


IDS = torch.arange(7)


@pytest.fixture
def peft() -> PeftModel:
    """LoRA on the embedding and proj, the head trained as a whole, out left alone."""
    torch.manual_seed(0)
    model: Any = Plain()
    model.embed, model.proj = LoraLayer(model.embed), LoraLayer(model.proj)
    model.embed.add("default", 2, 8)
    model.proj.add("default", 2, 8, use_rslora=True)
    saved = torch.nn.Linear(4, 7, bias=False)
    model.head = ModulesToSaveWrapper(model.head, saved, "default")
    return PeftModel(model).eval()


def pushed(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    source = open_source(module)
    tensors = dict(source)
    assert [ParamMeta.of(name, tensor) for name, tensor in tensors.items()] == source.metadata()
    return tensors


def computed(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    plain = Plain()
    plain.load_state_dict(tensors)
    return plain(IDS)


def wrapped(module: torch.nn.Module) -> torch.nn.Module:
    class Ddp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.compile(module)

    return Ddp()


@pytest.mark.parametrize("wrap", [lambda module: module, wrapped, torch.compile], ids=["bare", "ddp", "compile"])
def test_what_is_pushed_computes_what_the_trainer_computes(peft, wrap):
    before = {name: tensor.clone() for name, tensor in peft.state_dict().items()}
    tensors = pushed(wrap(peft))
    assert tensors.keys() == Plain().state_dict().keys()
    torch.testing.assert_close(computed(tensors), peft(IDS))
    assert not torch.equal(tensors["proj.weight"], before["base_model.model.proj.base_layer.weight"])
    after = peft.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_merge_is_in_float32_and_rounded_once(peft):
    proj = peft.base_model.model.proj
    base, delta = proj.base_layer.weight, proj.lora_B["default"].weight @ proj.lora_A["default"].weight
    peft.bfloat16()
    exact = base.float() + proj.scaling["default"] * (
        proj.lora_B["default"].weight.float() @ proj.lora_A["default"].weight.float()
    )
    assert delta.shape == exact.shape
    source = open_source(peft)
    metas = {meta.name: meta for meta in source.metadata()}
    assert metas["proj.weight"].dtype_name == "float32"
    assert metas["out.weight"].dtype_name == "bfloat16"
    served = ServedModel("r", {n: ParamMeta(n, "bfloat16", m.shape) for n, m in metas.items()})
    torch.testing.assert_close(dict(fit(source, served))["proj.weight"], exact.bfloat16(), rtol=0, atol=0)


def test_disabled_and_merged_adapters_leave_the_base(peft):
    base = peft.base_model.model.proj.base_layer.weight
    for layer in (peft.base_model.model.embed, peft.base_model.model.proj, peft.base_model.model.head):
        layer._disable_adapters = True
    torch.testing.assert_close(computed(pushed(peft)), peft(IDS))
    assert torch.equal(pushed(peft)["proj.weight"], base)
    for layer in (peft.base_model.model.embed, peft.base_model.model.proj):
        layer._disable_adapters = False
        layer.merged_adapters = ["default"]
    assert torch.equal(pushed(peft)["proj.weight"], base)


def test_several_active_adapters_add_up_and_others_do_not_count(peft):
    proj = peft.base_model.model.proj
    proj.add("second", 3, 3)
    proj.add("idle", 3, 3)
    proj._active_adapter = ["default", "second"]
    torch.testing.assert_close(computed(pushed(peft)), peft(IDS))


def test_a_layer_that_holds_its_weight_transposed():
    class Conv1D(torch.nn.Module):
        """transformers.pytorch_utils.Conv1D: weight [in, out]."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    layer = LoraLayer(Conv1D(), fan_in_fan_out=True)
    layer.add("default", 2, 4)
    model = torch.nn.Module()
    model.proj = layer
    x = torch.randn(3, 4)
    torch.testing.assert_close(x @ pushed(PeftModel(model))["proj.weight"], layer(x))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda proj: proj.lora_variant.update(default=object()), "a LoRA variant"),
        (lambda proj: proj.use_dora.update(default=True), "DoRA"),
        (lambda proj: proj.lora_bias.update(default=True), "a bias of its own"),
        (lambda proj: setattr(proj, "parameter_name", "weight"), "a bare parameter"),
        (lambda proj: proj.register_parameter("vera_d", torch.nn.Parameter(torch.ones(2))), "of a kind"),
        (lambda proj: proj.base_layer.to(torch.float8_e4m3fn), "float8_e4m3fn: its adapter cannot be merged"),
        (lambda proj: proj.lora_A.pop("default"), "are no matrices"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_what_helps(peft, spoil, reason):
    spoil(peft.base_model.model.proj)
    with pytest.raises(SourceError, match=rf"{reason}.*merge_and_unload.*push_adapter"):
        open_source(peft)
