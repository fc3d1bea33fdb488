"""Modules with PEFT's names and attributes (peft 0.18: tuners/lora/layer.py, utils/other.py); peft is not installed."""

import math
from typing import Any

import torch


class TunerLayer(torch.nn.Module):
    """peft.tuners.tuners_utils.BaseTunerLayer."""

    def __init__(self, base_layer: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    @property
    def active_adapters(self) -> list[str]:
        return self._active_adapter


class LoraLayer(TunerLayer):
    """peft.tuners.lora.Linear, Conv1D (`fan_in_fan_out`) and Embedding."""

    def __init__(self, base_layer: Any, *, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer)
        self.fan_in_fan_out = fan_in_fan_out
        self.scaling: dict[str, float] = {}
        self.lora_A = torch.nn.ModuleDict()
        self.lora_B = torch.nn.ModuleDict()
        self.lora_embedding_A = torch.nn.ParameterDict()
        self.lora_embedding_B = torch.nn.ParameterDict()
        self.lora_magnitude_vector = torch.nn.ModuleDict()
        self.lora_variant: dict[str, Any] = {}
        self.lora_bias: dict[str, bool] = {}
        self.use_dora: dict[str, bool] = {}

    def add(self, name: str, rank: int, alpha: float, *, use_rslora: bool = False) -> None:
        """An adapter with random matrices, active."""
        weight: Any = self.base_layer.weight
        self.scaling[name] = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.use_dora[name] = self.lora_bias[name] = False
        self._active_adapter = [*self._active_adapter, name]
        if isinstance(self.base_layer, torch.nn.Embedding):
            self.lora_embedding_A[name] = torch.nn.Parameter(torch.randn(rank, weight.shape[0]))
            self.lora_embedding_B[name] = torch.nn.Parameter(torch.randn(weight.shape[1], rank))
            return
        rows, columns = reversed(weight.shape) if self.fan_in_fan_out else weight.shape
        self.lora_A[name] = torch.nn.Linear(columns, rank, bias=False)
        self.lora_B[name] = torch.nn.Linear(rank, rows, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.lora_A:
                result = result + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
            elif name in self.lora_embedding_A:
                after_a = torch.nn.functional.embedding(x, self.lora_embedding_A[name].T)
                result = result + after_a @ self.lora_embedding_B[name].T * self.scaling[name]
        return result


class ModulesToSaveWrapper(torch.nn.Module):
    """peft.utils.other.ModulesToSaveWrapper."""

    def __init__(self, module: torch.nn.Module, saved: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = torch.nn.ModuleDict({name: saved})
        self._active_adapter = [name]
        self._disable_adapters = False

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    @property
    def active_adapters(self) -> list[str]:
        return self._active_adapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        used = self.original_module if self.disable_adapters else self.modules_to_save[self.active_adapters[0]]
        return used(x)


class LoraModel(torch.nn.Module):
    """peft.tuners.lora.LoraModel."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, Any] = {"default": {}}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


class PeftModel(torch.nn.Module):
    """peft.PeftModel."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = LoraModel(model)
        self.peft_config = self.base_model.peft_config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)
