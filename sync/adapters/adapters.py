"""Pushing LoRA adapters: an adapter becomes one blob, which every replica gets, or none."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save

from sync.control.client import ControlClient
from sync.control.fleet import CLEAN_UP_TIMEOUT_S, Fleet
from sync.deadline import Deadline
from sync.errors import CommitError, ConflictError, SourceError, SyncError
from sync.weights.sources import TensorSource
from tritonlive.wire.states import AdapterState
from tritonlive.wire.versions import next_version


@dataclass(frozen=True)
class Adapter:
    """An adapter as it travels: the bytes of PEFT's adapter_model.safetensors, and its adapter_config.json."""

    payload: bytes
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """XXH3 (64 bits) in hexadecimal."""
        return xxhash.xxh3_64_hexdigest(self.payload)


@dataclass(frozen=True)
class AdapterReport:
    """Figures of one push of an adapter."""

    name: str
    version: str
    num_bytes: int
    num_tensors: int
    seconds: float
    """Until every replica serves it and its front ends know it."""
    targets: tuple[str, ...]
    unchanged: tuple[str, ...] = ()
    """Targets that served exactly this version before."""

    def __str__(self) -> str:
        same = f", unchanged at {', '.join(self.unchanged)}" if self.unchanged else ""
        return (
            f"{self.name}@{self.version} is live at {', '.join(self.targets)}{same}: {self.num_tensors} tensors, "
            f"{self.num_bytes / 1e6:.1f} MB in {self.seconds:.2f} s"
        )


def open_adapter(source: Any, config: Any = None) -> Adapter:
    """From a PEFT model (its active adapter), a folder that PEFT saved, or a state dict with PEFT's names and `config`.

    config: a dict or a peft LoraConfig. Raises SourceError.
    """
    if isinstance(source, str | Path):
        return _read_folder(Path(source))
    if hasattr(source, "peft_config"):
        from peft import get_peft_model_state_dict  # ty: ignore[import-not-found] - who has a PEFT model has it

        name = source.active_adapter
        config = source.peft_config[name] if config is None else config
        source = get_peft_model_state_dict(source, adapter_name=name, save_embedding_layers=False)
    if not isinstance(source, Mapping):
        kind = type(source).__name__
        raise SourceError(f"adapter: expected a PEFT model, a folder, or a state dict with config=, got {kind}")
    if config is None:
        raise SourceError("adapter: a state dict needs config= (r, lora_alpha, target_modules, …)")
    # Copied: safetensors refuses tensors that share memory.
    tensors = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in TensorSource(source)}
    return Adapter(save(tensors), plain(config))


def plain(config: Any) -> dict[str, Any]:
    """An adapter's configuration as JSON, without unset fields. Raises SourceError."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise SourceError(f"config: expected a dict or a LoraConfig, got {type(values).__name__}")
    try:
        # peft keeps module names in sets, and kinds in string enums.
        text = json.dumps({name: value for name, value in values.items() if value is not None}, default=sorted)
    except TypeError as error:
        raise SourceError(f"config: {error}") from None
    known = json.loads(text)
    if isinstance(modules := known.get("target_modules"), list):
        # For "all-linear" peft lists every layer, too much for a header. The tensors' names contain the same.
        known["target_modules"] = sorted({str(module).rpartition(".")[2] for module in modules})
    return known


def push_adapter(fleet: Fleet, name: str, adapter: Adapter, version: str | None, deadline: Deadline) -> AdapterReport:
    """Every replica checks and loads the adapter; only then all serve it.

    Raises ControlError or DeadlineError when nothing changed, CommitError when only some replicas serve it.
    """
    began = time.perf_counter()
    if version is None:
        listed = fleet.each("adapters", lambda client, seconds: client.adapters(seconds), deadline)
        version = next_version(each["version"] for answer in listed for each in answer if each["name"] == name)
    with _discarded_on_failure(fleet, name, version):
        staged = fleet.each(
            "stage_adapter",
            lambda client, seconds: client.stage_adapter(
                name, version, adapter.config, adapter.digest, adapter.payload, seconds
            ),
            deadline,
        )
        if len(fleet.clients) > 1:
            fleet.each("adapters", lambda client, seconds: _check_there(client, name, version, seconds), deadline)
        _activate(fleet, name, version, deadline)
    targets = fleet.targets
    return AdapterReport(
        name=name,
        version=version,
        num_bytes=len(adapter.payload),
        num_tensors=staged[0]["tensors"],
        seconds=time.perf_counter() - began,
        targets=targets,
        unchanged=tuple(target for target, each in zip(targets, staged, strict=True) if not each["is_changed"]),
    )


def _activate(fleet: Fleet, name: str, version: str, deadline: Deadline) -> None:
    committed: list[str] = []

    def activate(client: ControlClient, seconds: float) -> None:
        client.activate_adapter(name, version, seconds)
        committed.append(str(client.target))

    try:
        fleet.each("activate_adapter", activate, deadline)
    except SyncError as error:
        failed = {target: error for target in fleet.targets if target not in committed}
        if committed and failed:
            raise CommitError(f"{name}@{version}", committed, failed) from error
        raise


def _check_there(client: ControlClient, name: str, version: str, seconds: float) -> None:
    there = [each for each in client.adapters(seconds) if each["name"] == name and each["version"] == version]
    if not any(each["state"] in (AdapterState.STAGED, AdapterState.SERVING) for each in there):
        raise ConflictError(
            str(client.target),
            "activate_adapter",
            f"{name}@{version} is gone: another trainer may push the same adapter",
        )


@contextmanager
def _discarded_on_failure(fleet: Fleet, name: str, version: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        try:
            fleet.each(
                "discard_adapter",
                lambda client, seconds: client.discard_adapter(name, version, seconds),
                Deadline(CLEAN_UP_TIMEOUT_S),
            )
        except SyncError as problem:
            error.add_note(f"while giving up: {problem}")
        raise


def _read_folder(folder: Path) -> Adapter:
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        return Adapter((folder / "adapter_model.safetensors").read_bytes(), plain(config))
    except OSError as error:
        raise SourceError(f"{folder}: not an adapter that PEFT saved: {error}") from None
    except ValueError as error:
        raise SourceError(f"{folder}: adapter_config.json is not JSON: {error}") from None
