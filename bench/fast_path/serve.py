"""`python -m bench.fast_path.serve SECONDS`: runs a FreeTriton in a process and answers every question with its URL."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import uvloop

from bench.child import serve
from bench.fast_path.free_triton import FreeTriton
from openai_frontend.engine_info import EngineInfo
from openai_frontend.vllm_seam import vllm_version
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.tiny_model import tiny_model


def start(step_s: float) -> Callable[[dict[str, Any]], str]:
    """Run a FreeTriton in a thread; returns the function that answers questions."""
    model = str(tiny_model(default_cache_dir()))
    argv = ["--model", model, "--max-model-len", "2048", "--max-num-seqs", "128", "--enforce-eager"]
    info = EngineInfo(vllm_version, argv, model, ["tiny"], ["generate"], 2048, 1000, 16, 16000, 1, 1)
    urls: list[str] = []
    is_up = threading.Event()

    async def run() -> None:
        async with FreeTriton(info, step_s=step_s) as triton:
            urls.append(triton.url)
            is_up.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: uvloop.run(run()), daemon=True).start()
    is_up.wait()
    return lambda question: urls[0]


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    serve(lambda: start(float(sys.argv[1])))
