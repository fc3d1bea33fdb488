"""Resolve cpu.in and dev.in into the exact locks cpu.txt and dev.txt (`make lock`).

The indexes are those pip is configured with. torch's CPU build is often not on them: then, for that package alone,
PyTorch's own index is asked. No index is written into a lock.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILE = (
    *(sys.executable, "-m", "uv", "pip", "compile"),
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36"),
    *("--upgrade", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
    *("--index-strategy", "unsafe-best-match"),  # as pip does: all configured indexes are equal
)


def pip_sources() -> dict[str, str]:
    """uv's environment for the indexes and links pip is configured with; uv does not read pip's configuration."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    env = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        # The environment comes after the files in pip's listing, and wins.
        match key.rpartition(".")[2]:
            case "index-url":
                env["UV_DEFAULT_INDEX"] = value.strip("'")
            case "extra-index-url":
                env["UV_INDEX"] = " ".join(value.strip("'").replace("\\n", " ").split())
            case "find-links":
                env["UV_FIND_LINKS"] = ",".join(value.strip("'").replace("\\n", " ").split())
    return env


def compile_lock(name: str, *arguments: str) -> bool:
    """Resolve `name`.in into `name`.txt; whether that worked."""
    command = [*COMPILE, f"{name}.in", "--output-file", f"{name}.txt", *arguments]
    return subprocess.run(command, cwd=HERE, env=pip_sources() | os.environ, check=False).returncode == 0


def main() -> int:
    """Write both locks; 0 if they could be resolved."""
    overrides = ("--override", "overrides.txt")
    is_resolved = compile_lock("cpu", *overrides) or compile_lock("cpu", *overrides, "--torch-backend", "cpu")
    return 0 if is_resolved and compile_lock("dev", "--constraint", "cpu.txt") else 1


if __name__ == "__main__":
    sys.exit(main())
