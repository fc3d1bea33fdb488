"""The most that each front end can do: an engine whose tokens cost nothing, behind a stand-in for Triton.

The stand-in (bench/fast_path/free_triton.py) and the load generator are processes of their own, so that what is
measured of a front end is its own processor time. A step gives every stream one token. Steps that come faster than a
front end can write them show its throughput; several tokens may then share an event of a stream.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.child import Child
from bench.front_ends.stream_load import Generator, StreamLoad, StreamSide
from tritonlive.launch.config import default_cache_dir

SERVED_NAME = "tiny"
"""Name that the stand-in gives its model."""
FRONT_ENDS = {"tritonlive": "bench.fast_path.frontend", "tritonlive-rust": "bench.fast_path.rust_frontend"}
"""Modules of the front ends' processes by the name of the system."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def free_front_ends(step_s: float, binary: Path) -> Iterator[dict[str, tuple[str, Child]]]:
    """URL and process of both front ends, over one stand-in whose steps are `step_s` seconds apart."""
    logs = default_cache_dir() / "logs"
    with ExitStack() as stack:
        triton = Child("bench.fast_path.serve", [str(step_s)], ENVIRONMENT, logs / "ceiling-triton.log")
        url = stack.enter_context(triton).ask({})
        started: dict[str, tuple[str, Child]] = {}
        for name, module in FRONT_ENDS.items():
            arguments = [url, *([str(binary)] if name == "tritonlive-rust" else [])]
            child = stack.enter_context(Child(module, arguments, ENVIRONMENT, logs / f"ceiling-{name}.log"))
            started[name] = (f"http://127.0.0.1:{child.ask({})['port']}", child)
        yield started


def sides(front_ends: dict[str, tuple[str, Child]], load: StreamLoad, generator: Generator) -> list[StreamSide]:
    """Both front ends as sides of the load."""
    return [
        StreamSide(name, url, SERVED_NAME, child.processes, load, generator)
        for name, (url, child) in front_ends.items()
    ]
