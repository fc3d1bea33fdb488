"""Row 19: the server unpickles nothing that arrives over a wire."""

import io
import pickle  # noqa: TID251 - the attacker's tool
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from sync.control.client import ControlClient
from tests.answers import Complete
from tritonlive.launch import Stack

pytestmark = pytest.mark.row(19)
ROOT = Path(__file__).parents[2]


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that must not appear."""
    path = tmp_path / "pickle-ran"
    pickle.loads(pickle.dumps(Canary(path)))  # noqa: S301 - the canary sings
    assert path.exists()
    path.unlink()
    return path


def test_a_pickle_in_every_place_that_takes_bytes(
    stack: Stack, control: ControlClient, complete: Complete, canary: Path
) -> None:
    payload = pickle.dumps(Canary(canary))
    with triton.InferenceServerClient(stack.grpc_url) as client:
        answers: list[InferenceServerException | None] = []
        client.start_stream(lambda result, error: answers.append(error))
        for name in ("engine_request", "engine_abort"):
            channel = triton.InferInput("engine_channel", [1, 1], "BYTES")
            channel.set_data_from_numpy(np.array([[b"attacker"]], dtype=np.object_))
            if name == "engine_request":
                body = triton.InferInput(name, [1, 1], "BYTES")
                body.set_data_from_numpy(np.array([[payload]], dtype=np.object_))
            else:
                body = triton.InferInput(name, [1, len(payload)], "UINT8")
                body.set_data_from_numpy(np.frombuffer(payload, dtype=np.uint8)[np.newaxis, :])
            client.async_stream_infer("llm", [channel, body])
        client.stop_stream()
    assert len(answers) == 2
    assert all(error is not None for error in answers)
    key = {"Authorization": f"Bearer {stack.control_key}"}
    for route in ("update_weights", "init_weight_transfer_engine", "start_weight_update"):
        answer = httpx.post(f"{stack.frontend_url}/{route}", content=payload, headers=key, timeout=30)
        assert 400 <= answer.status_code < 500, answer.text
    # vLLM's IPC engine takes a pickle in this field; here it is refused.
    with pytest.raises(Exception, match="update_weights"):
        control.update_weights({"names": [], "ipc_handles_pickled": payload.hex()})
    assert not canary.exists()
    complete()


def test_the_linter_forbids_the_module(tmp_path: Path) -> None:
    source = io.StringIO("import pickle\nfrom cloudpickle import dumps\n").read()
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251"]
    result = subprocess.run(
        [*command, "--stdin-filename", "sync/new.py", "-"], input=source, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 1
    assert result.stdout.count("TID251") == 2
