"""The other ends of `python -m bench.push`: push_child.py receive PORT BYTES | load FOLDER."""

import sys
import time

import torch

from sync.gloo import GlooGroup, join_store

TIMEOUT_S = 120.0


def receive(port: str, num_bytes: str) -> None:
    """Receive one broadcast after another, and say when one is there."""
    store = join_store("127.0.0.1", int(port), TIMEOUT_S)
    group = GlooGroup(store, 1, 2, "127.0.0.1", "bench", TIMEOUT_S)
    data = torch.zeros(int(num_bytes), dtype=torch.uint8)
    while True:
        group.wait(group.broadcast(data))
        if not sys.stdin.readline():
            return
        answer("there")


def load(folder: str) -> None:
    """Load the checkpoint's tensors into a running engine, each time it is asked."""
    from vllm import LLM

    from sync.gloo_worker import load as load_weights
    from sync.sources import open_source

    llm = LLM(folder, enforce_eager=True, max_model_len=2048)
    tensors = [(name, tensor.clone()) for name, tensor in open_source(folder)]
    config = llm.llm_engine.model_config

    def seconds(model: torch.nn.Module) -> float:
        began = time.perf_counter()
        load_weights(model, config, tensors)
        return time.perf_counter() - began

    for line in sys.stdin:
        answer(str(llm.apply_model(seconds)[0]) if line.strip() == "load" else "ready")


def answer(text: str) -> None:
    sys.stdout.write(f"answer {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"receive": receive, "load": load}[sys.argv[1]](*sys.argv[2:])
