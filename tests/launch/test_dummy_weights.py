"""A model of which there is no checkpoint yet, as before a trainer's first push."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tritonlive.launch.ports import pick_free

pytestmark = pytest.mark.stack


@pytest.fixture
def description(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The folder of a model without its weights."""
    shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    assert (tmp_path / "model" / "config.json").is_file()
    return tmp_path / "model"


def test_dummy_weights_need_no_weights_on_disk(description: Path, tmp_path: Path) -> None:
    names = ("--port", "--triton-http-port", "--triton-grpc-port", "--triton-metrics-port")
    numbers = pick_free("127.0.0.1", len(names))
    command = [
        *(sys.executable, "-m", "tritonlive", "serve", "--model", str(description), "--served-model-name", "dummy"),
        *(f"{name}={number}" for name, number in zip(names, numbers, strict=True)),
        *("--log-dir", str(tmp_path / "logs"), "--kv-cache-space", "1", "--timeout", "300"),
        *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-model-len", "128"),
    ]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": "control"}
    url = f"http://127.0.0.1:{numbers[0]}"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as serve:
        try:
            assert serve.stdout is not None
            shown = []
            for line in serve.stdout:  # until it is ready or has ended: it gives up by itself
                shown.append(line)
                if "tritonlive is ready" in line:
                    break
            assert serve.poll() is None, "".join(shown)
            body = {"model": "dummy", "prompt": "Hello", "max_tokens": 3, "ignore_eos": True}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()
            status = httpx.get(f"{url}/replica_status", headers={"Authorization": "Bearer control"}, timeout=60).json()
        finally:
            serve.send_signal(signal.SIGINT)
            serve.communicate(timeout=60)
    assert answer["usage"]["completion_tokens"] == 3
    assert status["state"] == "serving"
    assert serve.returncode == 0
