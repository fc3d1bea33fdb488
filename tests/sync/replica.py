"""A replica to push to without a server: the control routes over HTTP, a real gloo receiver, a dict as the model."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult

import torch

from sync.transport.gloo import Membership
from sync.transport.worker.memory import MemoryPool
from sync.weights.weight_source import ParamMeta
from sync.worker.gloo_receiver import Announcement, GlooReceiver
from sync.worker.staged_update import StagedUpdate
from tests.sync.stand_in import StandIn


class Replica(StandIn):
    """The front end's control routes for weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], tied: tuple[str, ...] = (), world_size: int = 1) -> None:
        super().__init__()
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.tied = list(tied)
        self.world_size = world_size
        self.state = "serving"
        self.version = "default"
        self.backend = "gloo"
        self.status: dict[str, Any] = {}  # what else it says of itself
        self.reject_reason = ""
        self.update_id: str | None = None
        self.committed: str | None = None  # the id of the last update
        self.updates: list[StagedUpdate] = []
        self.kept: list[dict[str, Any]] = []
        self.receivers: list[GlooReceiver] = []

    @property
    def receiver(self) -> GlooReceiver:
        return self.receivers[0]

    def close(self) -> None:
        super().close()
        self._close_receivers()

    def operation_of(self, method: str, url: SplitResult) -> str:
        return url.path.strip("/")

    def run(self, operation: str, url: SplitResult, headers: Any, body: bytes) -> dict[str, Any]:
        return getattr(self, operation)(json.loads(body or b"{}"))

    # ---- operations ---------------------------------------------------------------------------------------------

    def replica_status(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {
            "state": self.state,
            "weight_version": self.version,
            "world_size": self.world_size,
            "weight_transfer_backend": self.backend,
            "kept_versions": self.kept,
            **self.status,
        }

    def weight_parameters(self, _body: dict[str, Any]) -> dict[str, Any]:
        metas = [ParamMeta.of(name, tensor) for name, tensor in self.tensors.items()]
        named = [{"name": meta.name, "dtype": meta.dtype_name, "shape": list(meta.shape)} for meta in metas]
        return {"parameters": named, "tied": self.tied}

    def weight_info(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"weight_version": self.version}

    def init_weight_transfer_engine(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["init_info"]
        self._close_receivers()
        for worker in range(self.world_size):
            membership = Membership(
                info["master_address"],
                info["master_port"],
                info["rank_offset"] + worker,
                info["world_size"],
                info["secret"],
                info["timeout_s"],
                info["num_devices"],
                self.local_address(info, worker),
            )
            self.receivers.append(GlooReceiver(membership, MemoryPool()))
        return {}

    def local_address(self, info: dict[str, Any], worker: int) -> str:
        return info["local_address"]

    def reserve_lease(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def start_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self.state, self.update_id = "updating", body["update_id"]
        return {}

    def update_weights(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["update_info"]
        zipped = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        metas = [ParamMeta.from_names(*item) for item in zipped]
        for receiver in self.receivers:
            receiver.announce(Announcement(metas, self.reject_reason))
        return {}

    def prepare_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self._require(body["update_id"])
        self.updates = [receiver.take(5) for receiver in self.receivers]
        return {"digest": "same everywhere", "is_unchanged": False}

    def finish_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self._require(body["update_id"])
        for update in self.updates:
            self.tensors.update((name, tensor.clone()) for name, tensor in update.tensors)
        self.kept.append({"weight_version": self.version, "digest": None})
        self.state, self.version, self.committed = "serving", body["weight_version"], self.update_id
        return self.result()

    def result(self) -> dict[str, Any]:
        return {"weight_version": self.version, "is_changed": True, "paused_s": 0.02, "load_s": 0.01}

    def rollback(self, body: dict[str, Any]) -> dict[str, Any]:
        self.state, self.version = "serving", body["to"]
        return self.result()

    def _require(self, update_id: str) -> None:
        if self.state != "updating" or update_id != self.update_id:
            raise ValueError(f"update {update_id} is not running here")

    def renew_lease(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def fence(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["unless_committed"] != self.committed:
            self.state, self.reason = "fenced", body["reason"]
        return self._outcome(body["unless_committed"])

    def abort_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.state == "updating":
            self.state = "serving"
        return self._outcome(body["update_id"])

    def _outcome(self, update_id: str) -> dict[str, Any]:
        is_live = update_id == self.committed
        return {"state": self.state, "is_live": is_live, "result": self.result() if is_live else None}

    def shutdown_weight_transfer_engine(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._close_receivers()
        return {}

    def _close_receivers(self) -> None:
        for receiver in self.receivers:
            receiver.close()
        self.receivers = []
