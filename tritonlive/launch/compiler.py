"""Whether torch can compile a model for the CPU here: it writes C++, which needs a compiler and Python's headers."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from . import processor

EAGER = "--enforce-eager"


def missing_packages() -> list[str]:
    """Debian's packages that compiling lacks; empty where nothing is lacking or vLLM is not the CPU build."""
    if not processor.computes_on_cpu():
        return []
    missing = []
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing.append("g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    return missing
