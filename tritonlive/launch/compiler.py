"""Can torch compile a model for the CPU here: it writes C++ and needs somebody to compile that."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from . import processor

EAGER = "--enforce-eager"


def missing_packages() -> list[str]:
    """Debian's packages that compiling lacks; none if it lacks nothing, or if vLLM is not the CPU build."""
    if not processor.computes_on_cpu():
        return []
    missing = []
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing.append("g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    return missing
