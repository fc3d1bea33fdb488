"""Imports between packages: the contracts in `.importlinter`, and the modules that a trainer's process loads."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
WIRE_MAY_IMPORT = {"msgspec", "numpy"}
TRAINER_NEVER_LOADS = ("sync.worker", "sync.transport.worker", "tritonlive.backend", "tritonlive.launch", "vllm")
# Imports of a first push over gloo, with any transport of its workers.
GLOO_PUSH = ["sync.push.pusher", "sync.transport.trainer.gloo_trainer", "sync.transport.trainer.shared_sender"]


def test_contracts_hold(tmp_path: Path) -> None:
    lint_imports = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint_imports, "import-linter is not installed beside this Python"
    command = [lint_imports, "--no-logo", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wire_imports_the_standard_library_msgspec_and_numpy_only() -> None:
    graph = grimp.build_graph("tritonlive", include_external_packages=True, cache_dir=None)
    modules = {"tritonlive.wire", *graph.find_descendants("tritonlive.wire")}
    imported = {found.split(".")[0] for module in modules for found in graph.find_modules_directly_imported_by(module)}
    assert imported - sys.stdlib_module_names - {"tritonlive"} <= WIRE_MAY_IMPORT


@pytest.mark.parametrize(
    "statement",
    [
        "import sync",
        "from sync import WeightSync",
        "from sync import Rollouts, RolloutBatch",
        "from sync.adapters import adapters",
        "from sync.push import logprob_check",
        f"import {', '.join(GLOO_PUSH)}",
    ],
)
def test_a_trainers_process_loads_no_server_code(statement: str) -> None:
    loaded = modules_after(statement)
    assert [name for name in loaded if name.startswith(tuple(f"{each}." for each in TRAINER_NEVER_LOADS))] == []
    assert loaded.isdisjoint(TRAINER_NEVER_LOADS)


def test_the_package_alone_loads_no_torch() -> None:
    """vLLM imports it in each of its processes, and the command line shows its help without waiting for torch."""
    assert modules_after("import sync").isdisjoint({"torch", "grpc", "httpx"})


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())
