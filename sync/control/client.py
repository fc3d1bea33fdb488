"""The control client: what a trainer can ask of one replica, whatever carries it.

It has vLLM's four structural `VLLMWeightSyncClient` methods, so vLLM's own trainer engines can be driven through it.
"""

from abc import abstractmethod
from typing import Any

from sync.closing import Closing

from .target import Target

DEFAULT_TIMEOUT_S = 60.0


class ControlClient(Closing):
    """Control of one replica. Every call ends within `timeout` seconds; errors are those of `sync.errors`."""

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self.target = target
        self.timeout = timeout
        self.holder: str | None = None  # what this trainer calls itself when it takes a lease

    @abstractmethod
    def call(
        self,
        operation: str,
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
    ) -> dict[str, Any]:
        """Run one control operation (tritonlive/backend/control.py lists them) and return its JSON result.

        payload: bytes that the operation takes beside its arguments.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections. The replica keeps its state."""

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """`state`, `weight_version`, `kept_versions`, `world_size`, `weight_transfer_backend`, `reason`, …"""
        return self.call("status", timeout=timeout)

    def parameters(self, timeout: float | None = None) -> dict[str, Any]:
        """`parameters`: name, dtype and shape of every checkpoint tensor; `tied`: names a push may leave out."""
        return self.call("parameters", timeout=timeout)

    def weight_version(self, timeout: float | None = None) -> str:
        return self.call("get_weight_version", timeout=timeout)["weight_version"]

    def reserve_lease(self, init_info: dict[str, Any], timeout: float | None = None) -> None:
        """Take the lease (`holder`, `lease_s`) before the workers are called. Raises ConflictError while it is held."""
        self.call("reserve_lease", {"init_info": init_info}, timeout)

    def init_weight_transfer_engine(self, init_info: dict[str, Any], timeout: float | None = None) -> None:
        self.call("init_weight_transfer_engine", {"init_info": init_info}, timeout)

    def start_weight_update(
        self, timeout: float | None = None, *, update_id: str | None = None, in_flight: str = "keep"
    ) -> None:
        """Begin an update. `in_flight` is what becomes of running requests: keep, wait or abort."""
        self.call("start_weight_update", {"update_id": update_id, "in_flight": in_flight}, timeout)

    def update_weights(
        self,
        update_info: dict[str, Any] | list[dict[str, Any]],
        timeout: float | None = None,
        *,
        update_id: str | None = None,
    ) -> None:
        self.call("update_weights", {"update_info": update_info, "update_id": update_id}, timeout)

    def prepare_weight_update(self, timeout: float | None = None, *, update_id: str | None = None) -> dict[str, Any]:
        """Have every rank say that it can load the update. Returns its `digest` and whether it `is_unchanged`."""
        return self.call("prepare_weight_update", {"update_id": update_id}, timeout)

    def finish_weight_update(
        self, weight_version: str | None = None, timeout: float | None = None, *, update_id: str | None = None
    ) -> dict[str, Any]:
        """Make the update live. Returns `outcome`, `weight_version`, `is_changed`, `paused_s`, `load_s`."""
        return self.call("finish_weight_update", {"weight_version": weight_version, "update_id": update_id}, timeout)

    def abort_weight_update(
        self, reason: str, timeout: float | None = None, *, update_id: str | None = None, force: bool = False
    ) -> dict[str, Any]:
        """Give up a running update, harmless without one; with `force`, release any other trainer, too.

        Returns what became of `update_id`, which is final: `outcome`, `is_live`, `result`, and the replica's `state`.
        """
        arguments = {"reason": reason, "update_id": update_id, "force": force}
        return self.call("abort_weight_update", arguments, timeout)

    def renew_lease(self, timeout: float | None = None) -> None:
        """Say that this trainer lives."""
        self.call("renew_lease", {}, timeout)

    def rollback(
        self,
        in_flight: str = "keep",
        timeout: float | None = None,
        *,
        to: str | None = None,
        update_id: str | None = None,
    ) -> dict[str, Any]:
        """Serve an earlier version again, by default the one before; returns as `finish_weight_update`."""
        return self.call("rollback", {"in_flight": in_flight, "to": to, "update_id": update_id}, timeout)

    def reload(
        self, weight_version: str | None = None, timeout: float | None = None, *, update_id: str | None = None
    ) -> dict[str, Any]:
        """Serve the checkpoint on disk again; `weight_version` names it when its files have changed."""
        return self.call("reload", {"weight_version": weight_version, "update_id": update_id}, timeout)

    def fence(
        self, reason: str, timeout: float | None = None, *, unless_committed: str | None = None
    ) -> dict[str, Any]:
        """Let the replica refuse to generate until a push commits, unless that update is live there after all.

        Returns as `abort_weight_update`.
        """
        return self.call("fence", {"reason": reason, "unless_committed": unless_committed}, timeout)

    def score(self, prompts: list[list[int]], timeout: float | None = None) -> dict[str, Any]:
        """`logprobs`: for each prompt (token ids), those of all its tokens but the first; `weight_version`."""
        return self.call("score", {"prompts": prompts}, timeout)

    def timeline(self, timeout: float | None = None) -> dict[str, Any]:
        """`updates`: the last ones, oldest first; `in_flight`: running requests by the version they began with."""
        return self.call("timeline", timeout=timeout)

    def stage_adapter(
        self,
        name: str,
        version: str,
        config: dict[str, Any],
        digest: str,
        payload: bytes,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Check and load an adapter, but do not serve it yet. Returns `bytes`, `tensors`, `is_changed`.

        payload, config: PEFT's adapter_model.safetensors and adapter_config.json; digest: XXH3 of the former.
        """
        arguments = {"name": name, "version": version, "config": config, "digest": digest}
        return self.call("stage_adapter", arguments, timeout, payload)

    def activate_adapter(self, name: str, version: str, timeout: float | None = None) -> None:
        """Serve what was staged from now on."""
        self.call("activate_adapter", {"name": name, "version": version}, timeout)

    def discard_adapter(self, name: str, version: str, timeout: float | None = None) -> None:
        """Forget what was staged; harmless if it is not."""
        self.call("discard_adapter", {"name": name, "version": version}, timeout)

    def remove_adapter(self, name: str, timeout: float | None = None) -> None:
        """Serve the adapter no more."""
        self.call("remove_adapter", {"name": name}, timeout)

    def adapters(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """`name`, `version`, `state` (serving, staged, replaced), `bytes`, `tensors`, `requests` (running) of each."""
        return self.call("adapters", timeout=timeout)["adapters"]

    def shutdown_weight_transfer_engine(self, timeout: float | None = None) -> None:
        """Let the replica leave the trainer's group."""
        self.call("shutdown_weight_transfer_engine", timeout=timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.target)!r})"
