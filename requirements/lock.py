"""Resolve cpu.in and dev.in into the exact locks cpu.txt and dev.txt (`make lock`).

It uses pip's configured indexes. They often lack torch's CPU build; then PyTorch's own index is used for torch alone.
A lock never contains an index.
"""

import subprocess
import sys
from pathlib import Path

from requirements.bootstrap import uv_environment

HERE = Path(__file__).resolve().parent
COMPILE = (
    *(sys.executable, "-m", "uv", "pip", "compile"),
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36"),
    *("--upgrade", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
    *("--index-strategy", "unsafe-best-match"),  # like pip: all configured indexes are equal
)


def compile_lock(name: str, *arguments: str) -> bool:
    """Resolve `name`.in into `name`.txt; returns whether it succeeded."""
    command = [*COMPILE, f"{name}.in", "--output-file", f"{name}.txt", *arguments]
    return subprocess.run(command, cwd=HERE, env=uv_environment(sys.executable), check=False).returncode == 0


def main() -> int:
    """Write both locks; returns 0 if both were resolved."""
    overrides = ("--override", "overrides.txt")
    is_resolved = compile_lock("cpu", *overrides) or compile_lock("cpu", *overrides, "--torch-backend", "cpu")
    return 0 if is_resolved and compile_lock("dev", "--constraint", "cpu.txt") else 1


if __name__ == "__main__":
    sys.exit(main())
