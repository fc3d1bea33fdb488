import sysconfig
from pathlib import Path

import pytest

from tritonlive.launch import compiler, processor


def test_nothing_is_missing_where_there_are_a_compiler_and_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CXX", "sh")
    assert compiler.missing_packages() == []


def test_what_is_missing_is_named_by_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.missing_packages() == ["g++", "python3.11-dev"]


def test_a_gpu_build_compiles_in_its_own_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPU_BUILD", "no-such-distribution")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.missing_packages() == []
