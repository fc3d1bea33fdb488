"""The gloo weight transfer engine inside vLLM's workers (backend "gloo", registered by plugin.py).

Under Triton the model drives `weights` by the operations of worker_extension.py. vLLM's own life cycle
(`LLM.start_weight_update` … `finish_weight_update`) works too, and raises errors. It cannot abort an update: after
`update_weights({"abort": REASON})` its end loads nothing.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from .staged_weights import StagedWeights


@dataclass
class AnyInitInfo(WeightTransferInitInfo):
    """Fields that `staged_weights.GlooInitInfo` reads, the group's secret among them."""

    fields: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class AnyUpdateInfo(WeightTransferUpdateInfo):
    """Fields that `staged_weights.GlooUpdateInfo` reads."""

    fields: dict[str, Any] = field(default_factory=dict)


class GlooWeightTransferEngine(WeightTransferEngine[AnyInitInfo, AnyUpdateInfo]):
    """Receives checkpoint-format weights in the background, and loads all of them in one step."""

    init_info_cls = AnyInitInfo
    update_info_cls = AnyUpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.weights = StagedWeights(vllm_config, model)
        self._is_aborted = False
        self._ids = map("update-{}".format, itertools.count(1))

    def parse_init_info(self, init_dict: dict[str, Any]) -> AnyInitInfo:
        return AnyInitInfo(init_dict)

    def parse_update_info(self, update_dict: dict[str, Any]) -> AnyUpdateInfo:
        return AnyUpdateInfo(update_dict)

    def init_transfer_engine(self, init_info: AnyInitInfo) -> None:
        """Begin to join the trainer's group; a trainer connected before is left."""
        self.weights.connect(init_info.fields)

    def start_weight_update(self) -> None:
        """Drop a staged update. Only `finish_weight_update` touches the model."""
        self._is_aborted = False
        self.weights.start()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """The base class's method without its wait for the device, where nothing has been copied yet."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: AnyUpdateInfo) -> None:
        if "abort" in update_info.fields:
            self._is_aborted = True
            self.weights.abort()
        else:
            self.weights.update(update_info.fields)

    def finish_weight_update(self) -> None:
        """Load the staged update. Raises WorkerError: REJECTED with the model untouched, or TOUCHED."""
        if self._is_aborted:
            return
        if self.weights.prepare()["is_unchanged"]:
            self.weights.adopt()
            return
        current = self.weights.history.current
        self.weights.load(next(self._ids), [current] if current is not None else [])

    def shutdown(self) -> None:
        """Leave the trainer's group."""
        self.weights.disconnect()
