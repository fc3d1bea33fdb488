"""Pushes of adapters: conversion of a trainer's source, and all replicas or none."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from typer.testing import CliRunner

from sync import CommitError, ConflictError, InvalidError, SourceError, WeightSync
from sync.adapters.adapters import open_adapter
from tests.sync.adapter_replica import AdapterReplica
from tests.sync.stand_in import KEY
from tritonlive.cli.app import app

NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_"
CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {f"{NAME}A.weight": torch.ones(2, 3), f"{NAME}B.weight": torch.ones(4, 2).bfloat16()}


@pytest.fixture
def replicas() -> Iterator[list[AdapterReplica]]:
    with ExitStack() as stack:
        yield [stack.enter_context(AdapterReplica()) for _ in range(2)]


@pytest.fixture
def sync(replicas: list[AdapterReplica]) -> Iterator[WeightSync]:
    with WeightSync([replica.address for replica in replicas], control_key=KEY, timeout=10) as client:
        yield client


def test_all_replicas_take_it(replicas, sync, tensors):
    report = sync.push_adapter("mine", tensors, "step-1", config=CONFIG)
    for replica in replicas:
        assert replica.serving == {"mine": "step-1"}
        assert replica.calls == ["stage", "adapters", "activate"]
        assert all(torch.equal(load(replica.payload)[name], tensor) for name, tensor in tensors.items())
        assert replica.config == CONFIG
    assert (report.name, report.version, report.num_tensors) == ("mine", "step-1", 2)
    assert report.num_bytes == len(replicas[0].payload)
    assert report.targets == tuple(replica.address for replica in replicas)
    assert "mine@step-1 is live at" in str(report)


def test_versions_count_up_from_the_highest_of_that_name(replicas, sync, tensors):
    assert sync.push_adapter("mine", tensors, config=CONFIG).version == "v1"
    replicas[1].serving["mine"] = "v7"
    assert sync.push_adapter("mine", tensors, config=CONFIG).version == "v8"
    assert sync.push_adapter("other", tensors, config=CONFIG).version == "v1"


def test_one_that_refuses_leaves_none_with_it(replicas, sync, tensors):
    replicas[1].fail["stage"] = (400, "layers.0: made for a weight of another shape")
    with pytest.raises(InvalidError, match="another shape"):
        sync.push_adapter("mine", tensors, "v1", config=CONFIG)
    assert [replica.serving for replica in replicas] == [{}, {}]
    assert [replica.staged for replica in replicas] == [{}, {}]


def test_one_that_lost_it_before_the_others_serve_it(replicas, sync, tensors):
    replicas[1].forgets = True
    with pytest.raises(ConflictError, match="mine@v1 is gone"):
        sync.push_adapter("mine", tensors, "v1", config=CONFIG)
    assert [replica.serving for replica in replicas] == [{}, {}]
    assert replicas[0].staged == {}


def test_one_that_fails_at_the_very_end_is_named(replicas, sync, tensors):
    replicas[1].fail["activate"] = (503, "the engine died")
    with pytest.raises(CommitError, match="the engine died") as caught:
        sync.push_adapter("mine", tensors, "v1", config=CONFIG)
    assert caught.value.committed == (replicas[0].address,)
    assert list(caught.value.failed) == [replicas[1].address]


def test_remove(replicas, sync, tensors):
    sync.push_adapter("mine", tensors, config=CONFIG)
    sync.remove_adapter("mine")
    assert [replica.serving for replica in replicas] == [{}, {}]


def test_tensors_that_share_memory_or_are_not_contiguous(tensors):
    shared = torch.arange(12.0).reshape(3, 4)
    sent = load(open_adapter({"a": shared, "b": shared.T, "c": shared[1]}, CONFIG).payload)
    assert torch.equal(sent["b"], shared.T)
    assert torch.equal(sent["c"], shared[1])


class PeftType(StrEnum):
    LORA = "LORA"


def test_a_config_as_peft_has_it(tensors):
    config = SimpleNamespace(
        to_dict=lambda: {
            "peft_type": PeftType.LORA,
            "r": 8,
            "target_modules": {"l.0.v", "l.0.q", "l.1.q"},
            "bias": "none",
            "x": None,
        }
    )
    expected = {"peft_type": "LORA", "r": 8, "target_modules": ["q", "v"], "bias": "none"}
    assert open_adapter(tensors, config).config == expected


@pytest.mark.parametrize(
    ("source", "config", "problem"),
    [
        ({"a": torch.ones(1)}, None, "needs config="),
        ({"a": 1}, CONFIG, "expected names and tensors"),
        ([1], CONFIG, "expected a PEFT model, a folder, or a state dict"),
        ({"a": torch.ones(1)}, 7, "expected a dict or a LoraConfig"),
        ({"a": torch.ones(1)}, {"r": object()}, "config: "),
        ("/nowhere", None, "not an adapter that PEFT saved"),
    ],
)
def test_what_is_no_adapter(source: Any, config: Any, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        open_adapter(source, config)


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def run(replicas: list[AdapterReplica]) -> Callable[..., Any]:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), env={"TRITONLIVE_CONTROL_KEY": KEY})

    return invoke


def test_the_command_line(replicas, run, folder):
    there = ["--to", replicas[0].address]
    answer = run("push-adapter", *there, "--adapter", str(folder), "--name", "mine", "--version", "v3", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["version"] == "v3"
    assert replicas[0].payload == (folder / "adapter_model.safetensors").read_bytes()
    listed = run("adapters", *there)
    assert listed.stdout.splitlines()[1].split()[:3] == ["mine", "v3", "serving"]
    assert json.loads(run("adapters", *there, "--json").stdout)[0]["name"] == "mine"
    assert run("remove-adapter", *there, "--name", "mine").output == "mine is removed.\n"
    assert replicas[0].serving == {}
