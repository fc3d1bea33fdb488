"""Two real processes broadcast a checkpoint's bytes."""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.systems import Settings, Systems


def test_a_broadcast_is_timed(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRITONLIVE_CACHE_DIR", str(tmp_path))
    save_file({"small": torch.ones(3), "large": torch.ones(2**20)}, tmp_path / "model.safetensors")
    started: list[str] = []
    with ExitStack() as stack:
        systems = stack.enter_context(Systems(Settings(tmp_path), ("tritonlive", "vllm"), started.append))
        seconds = [systems.broadcast.seconds() for _ in range(2)]
        processes = systems.broadcast.processes()
    assert all(0 < each < 60 for each in seconds)
    assert started == ["bare broadcast"]
    assert len(processes) == 2
    assert not any(process.is_running() for process in processes)
