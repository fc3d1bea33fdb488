import json
import sys
from pathlib import Path

import pytest

from requirements import bootstrap


def interpreter(directory: Path, **facts: object) -> str:
    """A `python` that says this about itself."""
    path = directory / "python"
    answer = {"executable": str(path), "version": "3.11", "libpython": True, "venv": True, **facts}
    path.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No other Python on this machine."""
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    found = bootstrap.probe
    monkeypatch.setattr(bootstrap, "probe", lambda name: found(name) if name.startswith(str(tmp_path)) else None)


@pytest.mark.usefixtures("only")
def test_a_python_that_fits_is_taken(tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    assert bootstrap.find_python() == python


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"libpython": False}, "no shared libpython3.11.so. On Debian or Ubuntu: apt-get install libpython3.11\n"),
        ({"venv": False}, "cannot make virtual environments. On Debian or Ubuntu: apt-get install python3.11-venv\n"),
        ({"version": "3.12"}, "python3.11 not found. .*apt-get install python3.11 python3.11-venv libpython3.11\n"),
    ],
)
def test_what_is_missing_is_named_by_package(tmp_path: Path, facts: dict[str, object], message: str) -> None:
    interpreter(tmp_path, **facts)
    with pytest.raises(SystemExit, match=message):
        bootstrap.find_python()


def test_the_probe_tells_the_truth_about_this_python() -> None:
    facts = bootstrap.probe(sys.executable)
    assert facts is not None
    assert facts["version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert facts["libpython"] is True


def test_the_fingerprint_changes_with_a_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in bootstrap.INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    before = bootstrap.fingerprint("/usr/bin/python3")
    (tmp_path / bootstrap.INPUTS[1]).write_text("b")
    assert bootstrap.fingerprint("/usr/bin/python3") != before


def test_locks_pin_everything_and_name_no_index() -> None:
    for lock in bootstrap.LOCKS:
        text = (bootstrap.ROOT / "requirements" / lock).read_text()
        assert "://" not in text
        assert "--" not in text
        assert all("==" in line for line in bootstrap.pinned(lock))
    assert not {line.split("==")[0] for line in bootstrap.pinned("cpu.txt")} & {"torchvision", "torchaudio", "llm"}


def test_torch_is_asked_of_its_own_index_only_when_the_configured_ones_lack_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    def pip(venv: Path, arguments: list[str], total: int = 0) -> str | None:
        calls.append(arguments)
        return "No matching distribution found" if len(calls) == 1 else None

    monkeypatch.setattr(bootstrap, "pip", pip)
    bootstrap.install(tmp_path)
    assert [bootstrap.TORCH_CPU_INDEX in call for call in calls] == [False, True, False]
    assert [argument for argument in calls[1] if argument.startswith("torch")] == ["torch==2.13.0+cpu"]
