"""tritonlive/backend/private_files.py: the model's files, and its shared memory, are its user's alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonlive.backend.private_files import keep_private


@pytest.fixture
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.row(37)
@pytest.mark.usefixtures("_usual_umask")
def test_the_region_that_the_command_line_names_and_later_files(tmp_path: Path) -> None:
    memory = tmp_path / "shm"
    (memory / "folder").mkdir(parents=True)
    for name in ("mine", "other", "folder/deep"):
        (memory / name).touch(mode=0o644)
    command = tmp_path / "cmdline"
    command.write_bytes(b"\0".join([b"stub", b"/1/model.py", b"mine", b"1048576", b"folder/deep", b"folder", b""]))
    keep_private(memory, command)
    assert [mode(memory / name) for name in ("mine", "other", "folder/deep")] == [0o600, 0o644, 0o644]
    (tmp_path / "later").touch()
    assert mode(tmp_path / "later") == 0o600
