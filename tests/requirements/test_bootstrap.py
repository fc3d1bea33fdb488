"""requirements/bootstrap.py."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

from requirements import bootstrap


def interpreter(directory: Path, **facts: object) -> str:
    """A `python` that reports these facts."""
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


def test_the_probe_describes_this_python() -> None:
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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands for pip and uv; nothing is installed."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(bootstrap, "pip", lambda venv, *arguments: calls.append(("pip", *arguments)))
    monkeypatch.setattr(bootstrap, "uv", lambda venv, *arguments: calls.append(("uv", *arguments)))
    return calls


def test_pip_installs_uv_and_uv_the_rest(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    bootstrap.install(tmp_path)
    assert [call[0] for call in calls] == ["pip", "uv", "uv"]
    assert calls[0][-1].startswith("uv==")
    assert all("--no-deps" in call for call in calls)


def test_torch_is_asked_of_its_own_index_only_when_the_configured_ones_lack_it(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def uv(venv: Path, *arguments: str) -> str | None:
        calls.append(("uv", *arguments))
        return "no version of torch==2.13.0+cpu" if len(calls) == 2 else None

    monkeypatch.setattr(bootstrap, "uv", uv)
    bootstrap.install(tmp_path)
    assert [bootstrap.TORCH_CPU_INDEX in call for call in calls] == [False, False, True, False]
    assert [argument for argument in calls[2] if argument.startswith("torch")] == ["torch==2.13.0+cpu"]


def test_a_failed_installation_ends_with_what_was_said(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "uv", lambda venv, *arguments: "no route to host")
    with pytest.raises(SystemExit, match="could not be installed:\nno route to host"):
        bootstrap.install(tmp_path)


def test_uv_gets_the_settings_of_pip() -> None:
    listing = "\n".join(
        [
            "global.index-url='https://index/simple'",
            r"global.extra-index-url='file:///a/simple\nfile:///b/simple'",
            "global.find-links='/wheels'",
            "global.timeout='60'",
            ":env:.find-links='/more /wheels'",
            ":env:.cert='/ca.crt'",
        ]
    )
    assert bootstrap.pip_settings(listing) == {
        "UV_DEFAULT_INDEX": "https://index/simple",
        "UV_INDEX": "file:///a/simple file:///b/simple",
        "UV_FIND_LINKS": "/more,/wheels",
        "SSL_CERT_FILE": "/ca.crt",
    }


def disk(monkeypatch: pytest.MonkeyPatch, *, free_gb: float) -> None:
    usage = type(shutil.disk_usage("/"))(10**13, 0, int(free_gb * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_the_set_up_says_what_it_takes_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk(monkeypatch, free_gb=50)
    bootstrap.require_disk(tmp_path / "sources" / ".venv")
    assert f"takes about {bootstrap.VENV_MB / 1000:.1f} GB on disk, 50.0 GB are free" in capsys.readouterr().err


def test_a_full_disk_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk(monkeypatch, free_gb=2)
    with pytest.raises(SystemExit, match=r"has 2.0 GB free, and the set-up needs \d\.\d GB: free some"):
        bootstrap.require_disk(tmp_path / ".venv")
    (tmp_path / ".venv").mkdir()
    bootstrap.require_disk(tmp_path / ".venv")  # an update takes little


def test_progress_names_the_downloads_that_run(tmp_path: Path) -> None:
    progress = bootstrap.Progress(tmp_path)
    for line in (
        "Resolved 3 packages in 1s",
        "Downloading torch (1.5GiB)",
        "Downloading a (300.0KiB)",
        "Downloading b (2MiB)",
    ):
        progress.read(line)
    assert "downloading torch (1536 MB), b (2 MB), a (0 MB)" in progress.text()
    for line in (" Downloaded torch", " Downloaded a", " Downloaded b", "Prepared 3 packages in 2s"):
        progress.read(line)
    assert progress.text().endswith("GB on disk · Prepared 3 packages in 2s")
    assert "0.0 of about" in progress.text()


def test_progress_is_shown_while_an_installer_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "IN_A_LOG_S", 0.1)
    program = "import time; print('Downloading torch (1.5GiB)', flush=True); time.sleep(1)"
    with bootstrap.Progress(tmp_path) as progress:
        assert bootstrap.run([sys.executable, "-c", program], progress=progress) is None
    assert "downloading torch (1536 MB)" in capsys.readouterr().err


def test_the_last_lines_of_a_failed_installer_are_returned() -> None:
    assert bootstrap.run([sys.executable, "-c", "print('no such package'); raise SystemExit(1)"]) == "no such package"


def test_an_old_python_can_read_it() -> None:
    ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 8))
