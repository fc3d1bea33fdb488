"""tritonlive/launch/shared_memory.py: what a killed launcher has left goes at the next start, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonlive.launch import shared_memory
from tritonlive.launch.shared_memory import SharedMemory

LAUNCHER = """
import sys
from pathlib import Path
from tritonlive.launch import shared_memory
shared_memory.FOLDER = Path(sys.argv[1])
memory = shared_memory.SharedMemory(8001)
memory.reserve()
memory.make_folder()
(shared_memory.FOLDER / f"{memory.prefix}region").touch()
print("reserved", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def launcher(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has reserved names, and has made a region and a folder."""
    command = [sys.executable, "-c", LAUNCHER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reserved\n"
        yield process


def names(folder: Path, pid: int) -> list[Path]:
    return list(folder.glob(f"tritonlive_{pid}_*"))


@pytest.mark.row(30)
def test_what_a_killed_launcher_has_left_goes_at_the_next_start(folder: Path, launcher: subprocess.Popen[str]) -> None:
    others = folder / "tritonlive_1_8001_region", folder / "other"
    for path in others:
        path.touch()
    memory = SharedMemory(8002)
    memory.reserve()
    assert len(names(folder, launcher.pid)) == 3, "a living launcher's"
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    memory.release()
    memory.reserve()
    assert names(folder, launcher.pid) == []
    assert all(path.exists() for path in others), "nothing says that they are a killed launcher's"
    memory.release()
    assert names(folder, os.getpid()) == []


def test_another_start_of_the_same_process_leaves_the_first_alone(folder: Path) -> None:
    first, second = SharedMemory(8001), SharedMemory(8002)
    first.reserve()
    region = Path(first.make_folder())
    second.reserve()
    second.clear()
    second.release()
    assert region.is_dir()
    first.clear()
    assert [path.name for path in folder.iterdir()] == [f"{first.prefix}lock"]
    first.release()
    first.release()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_another_users_lock_removes_nothing(folder: Path) -> None:
    region, lock = folder / "tritonlive_1_8001_region", folder / "tritonlive_1_8001_lock"
    for path in (region, lock):
        path.touch()
    os.chown(lock, 65534, 65534)
    memory = SharedMemory(8002)
    memory.reserve()
    assert region.exists()
    memory.release()
