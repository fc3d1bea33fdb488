"""tritonlive/launch/log_folder.py: one stack at a time writes a folder of logs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tritonlive.launch.errors import LaunchError
from tritonlive.launch.log_folder import LogFolder

RESERVE = """
import sys
from pathlib import Path
from tritonlive.launch.log_folder import LogFolder
folder = LogFolder(Path(sys.argv[1]))
folder.reserve()
print("reserved", flush=True)
sys.stdin.read()
"""


@pytest.mark.row(65)
def test_a_second_stack_is_told_who_writes_the_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    command = [sys.executable, "-c", RESERVE, str(tmp_path / "logs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "reserved\n"
        said = rf"written by tritonlive, process {first.pid} \(since \d\d:\d\d:\d\d\); choose others"
        for name in ("logs", "link"):
            with pytest.raises(LaunchError, match=said):
                LogFolder(tmp_path / name).reserve()
        LogFolder(tmp_path / "other").reserve()
        first.kill()
        first.wait(10)
    LogFolder(tmp_path / "logs").reserve()


def test_it_can_be_reserved_again_after_a_release(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    folder.reserve()
    folder.reserve()
    with pytest.raises(LaunchError, match="this process"):
        LogFolder(tmp_path).reserve()
    folder.release()
    folder.release()
    other = LogFolder(tmp_path)
    other.reserve()
    assert list(tmp_path.iterdir()) == []
