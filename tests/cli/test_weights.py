"""tritonlive/cli/weights.py and state.py."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.sync.replica import Replica
from tests.sync.stand_in import KEY
from tritonlive.cli.app import app

run = CliRunner()


@pytest.fixture
def checkpoint(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def replica(weights, monkeypatch):
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", KEY)
    with Replica({name: tensor * 0 for name, tensor in weights.items()}) as running:
        yield running


@pytest.mark.parametrize("arguments", [[], ["push"], ["check"], ["status"]])
def test_help_teaches(arguments):
    answer = run.invoke(app, [*arguments, "--help"])
    assert answer.exit_code == 0
    assert "--to" in answer.output or "http://127.0.0.1:9000" in answer.output


def test_status(replica):
    answer = run.invoke(app, ["status", "--to", replica.address])
    assert answer.exit_code == 0
    assert "serving" in answer.output
    answer = run.invoke(app, ["status", "--to", replica.address, "--json"])
    assert json.loads(answer.output)["weight_version"] == "default"


def test_push_and_check(replica, checkpoint, weights):
    there = ["--to", replica.address, "--checkpoint", str(checkpoint)]
    assert run.invoke(app, ["check", *there]).output == "The weights fit.\n"
    answer = run.invoke(app, ["push", *there, "--version", "step-7", "--json"])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["version"] == "step-7"
    assert replica.version == "step-7"
    assert all(replica.tensors[name].equal(weights[name]) for name in weights)


def test_check_does_not_wait_for_torch(replica, checkpoint):
    program = """
import sys
from tritonlive.cli.trainer_app import app
app(standalone_mode=False)
assert not {"torch", "tritonlive.launch", "openai_frontend"} & set(sys.modules)
"""
    there = ["check", "--to", replica.address, "--checkpoint", str(checkpoint)]
    ended = subprocess.run([sys.executable, "-c", program, *there], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("The weights fit.\n", "", 0)


def test_what_does_not_fit(replica, checkpoint):
    del replica.tensors["lm_head.weight"]
    replica.tensors["more"] = replica.tensors["model.layers.0.bias"]
    for command in ("check", "push"):
        answer = run.invoke(app, [command, "--to", replica.address, "--checkpoint", str(checkpoint)])
        assert answer.exit_code == 3
        assert "lm_head.weight: not a tensor of the served checkpoint" in answer.stderr
        assert "more: missing" in answer.stderr
    assert "start_weight_update" not in replica.calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_a_push_from_a_gpu_without_one_is_refused_before_a_server_is_asked(replica, checkpoint, backend):
    replica.backend = "nccl"
    there = ["--to", replica.address, "--checkpoint", str(checkpoint), "--backend", backend]
    answer = run.invoke(app, ["push", *there])
    assert answer.exit_code == 1
    assert "this process has none" in answer.stderr
    assert "--backend gloo" in answer.stderr
    assert replica.calls == []


def test_lines_are_not_broken(replica, checkpoint):
    name = "model.layers.0.self_attn.a_name_that_is_wider_than_the_eighty_columns_of_a_pipe.weight"
    replica.tensors[name] = replica.tensors["model.layers.0.bias"]
    there = ["--to", replica.address, "--checkpoint", str(checkpoint)]
    assert f"  {name}: missing, served is " in run.invoke(app, ["check", *there]).stderr
    del replica.tensors[name]
    assert len(run.invoke(app, ["push", *there]).stdout.splitlines()) == 1


def test_exit_codes(replica, checkpoint, monkeypatch):
    assert run.invoke(app, ["status", "--to", "ftp://x"]).exit_code == 1
    assert run.invoke(app, ["status", "--to", "http://127.0.0.1:1"]).exit_code == 5
    assert run.invoke(app, ["push", "--to", replica.address, "--checkpoint", "/nowhere"]).exit_code == 2
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", "wrong-key")
    refused = run.invoke(app, ["status", "--to", replica.address])
    assert refused.exit_code == 4
    assert "wrong-key" not in refused.output


@pytest.mark.parametrize("command", ["status", "push"])
def test_a_version_is_not_markup(replica, checkpoint, command):
    push = ["--checkpoint", str(checkpoint), "--version", "[red]"]
    assert run.invoke(app, ["push", "--to", replica.address, *push]).exit_code == 0
    assert "[red]" in run.invoke(app, [command, "--to", replica.address, *(push if command == "push" else [])]).stdout


def test_sync_is_the_same_command():
    shown = subprocess.run([sys.executable, "-m", "sync", "push", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: python -m sync push" in shown.stdout
