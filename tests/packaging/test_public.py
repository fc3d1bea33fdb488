"""The public names: tritonlive/__init__.py over sync/__init__.py."""

import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sync
import tritonlive

ROOT = Path(tritonlive.__file__).parents[1]


@pytest.mark.parametrize("name", sync.__all__)
def test_a_public_name_is_that_of_sync(name: str) -> None:
    public = getattr(tritonlive, name)
    assert public is getattr(sync, name)
    assert inspect.isclass(public)
    assert public.__doc__


def test_there_are_no_others() -> None:
    assert dir(tritonlive) == sorted([*sync.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'connect'"):
        getattr(tritonlive, "connect")  # noqa: B009 - the type checker knows


def test_a_star_imports_all_of_them() -> None:
    namespace: dict[str, object] = {}
    exec("from tritonlive import *", namespace)  # noqa: S102
    assert {"WeightSync", "Rollouts", "SyncError", "__version__"} <= set(namespace)
    assert set(sync.__all__) <= set(namespace)


def test_every_error_of_sync_is_public() -> None:
    classes = (value for value in vars(sync.errors).values() if inspect.isclass(value))
    errors = [value.__name__ for value in classes if value.__module__ == "sync.errors"]
    assert set(errors) <= set(sync.__all__)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tritonlive; tritonlive.__version__", {"sync", "torch", "numpy", "vllm", "httpx", "rich"}),
        ("import tritonlive.wire", {"sync", "torch", "vllm"}),
        ("from tritonlive import wire", {"sync", "torch", "vllm"}),
        ("import tritonlive.launch", {"sync", "torch", "numpy", "vllm", "psutil", "filelock"}),
        ("from tritonlive import SyncError", {"torch", "vllm"}),
        ("from tritonlive import WeightSync, Rollouts", {"vllm"}),
    ],
)
def test_imports_are_light(statement: str, absent: set[str]) -> None:
    program = f"{statement}\nimport sys\nprint(sorted({absent} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_the_types_are_there() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("tritonlive", "sync", "openai_frontend"))


def test_the_version_has_one_definition() -> None:
    assert f'__version__ = "{tritonlive.__version__}"' in (ROOT / "tritonlive" / "version.py").read_text()
    assert f'version = "{tritonlive.__version__}"' not in (ROOT / "pyproject.toml").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert changes.partition("\n## ")[2].startswith(tritonlive.__version__)
    assert metadata.version("tritonlive")
