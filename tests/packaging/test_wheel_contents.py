"""The wheel contains the product and nothing else."""

import email
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tritonlive

ROOT = Path(__file__).parents[2]
PACKAGES = ("openai_frontend", "sync", "tritonlive")
MODEL_FILES = (
    *("llm/config.pbtxt", "llm/1/model.json", "llm/1/model.py"),
    *(f"{model}/{name}" for model in ("vllm_model", "llm_unary") for name in ("config.pbtxt", "1/model.py")),
)


@pytest.fixture(scope="module")
def archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as opened:
        yield opened


def test_every_module_of_the_product_is_in_it(archive: zipfile.ZipFile) -> None:
    files = (file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    modules = {str(file) for file in files if "model_repository" not in file.parts}
    assert modules <= set(archive.namelist())


def test_nothing_else_is_in_it(archive: zipfile.ZipFile) -> None:
    information = f"tritonlive-{tritonlive.__version__}.dist-info"
    assert {name.partition("/")[0] for name in archive.namelist()} == {*PACKAGES, information}
    data = {name for name in archive.namelist() if not name.endswith(".py") and not name.startswith(information)}
    assert data == {
        *(f"{package}/py.typed" for package in PACKAGES),
        "tritonlive/launch/vllm_options.json",
        *(f"tritonlive/model_repository/{name}" for name in MODEL_FILES if not name.endswith(".py")),
    }


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_model_repository_is_that_of_the_checkout(archive: zipfile.ZipFile, name: str) -> None:
    packed = archive.read(f"tritonlive/model_repository/{name}")
    assert packed == (ROOT / "model_repository" / name).read_bytes()


def test_the_metadata(archive: zipfile.ZipFile) -> None:
    information = f"tritonlive-{tritonlive.__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{information}/METADATA"))
    assert metadata["Version"] == tritonlive.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"server", "trl", "bench"}
    assert not metadata.get_all("Project-URL")
    assert b"Apache License" in archive.read(f"{information}/licenses/LICENSE")
    entry_points = archive.read(f"{information}/entry_points.txt").decode()
    assert "tritonlive = tritonlive.cli.app:main" in entry_points
    assert "tritonlive_gloo = sync.worker.plugin:register" in entry_points
