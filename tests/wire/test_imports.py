"""tritonlive/wire imports the standard library, msgspec and numpy only; importing it is light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tritonlive/wire").rglob("*.py"))
ALLOWED = {"msgspec", "numpy"} | set(sys.stdlib_module_names)
HEAVY = {"fastapi", "grpc", "httpx", "openai_frontend", "sync", "torch", "tritonclient", "vllm"}
SCRIPT = """
import importlib, json, pkgutil, sys
import tritonlive.wire
for module in pkgutil.walk_packages(tritonlive.wire.__path__, "tritonlive.wire."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "tritonlive.wire" if node.level else node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_file_imports(path: Path) -> None:
    found = set(imports(ast.parse(path.read_text())))
    outside = {name for name in found if name != "tritonlive.wire" and not name.startswith("tritonlive.wire.")}
    assert {name.partition(".")[0] for name in outside} <= ALLOWED


def test_what_importing_all_of_it_loads() -> None:
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    loaded = set(json.loads(output))
    assert {"tritonlive.wire.operations.weights", "tritonlive.wire.triton_tensors"} <= loaded, "all of it was imported"
    assert not HEAVY & loaded
