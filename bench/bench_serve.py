"""Streams from `vllm-rs bench serve`, vLLM's load generator in Rust, which takes little of the processor.

Its time to the first token of a chat is that of the first event, which has only a role; vLLM's servers send it before
their engine has seen the request, and ours with the first token (openai_frontend/guards/admission.py). Here it is the
time of the event after that one.
"""

import json
import os
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from bench.client import LoadError
from bench.measure import Figures
from bench.stats import percentile

BACKENDS = {"completions": "openai", "chat": "openai-chat"}
TIMEOUT_S = 600.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "RUST_LOG": "warn"}


@dataclass(frozen=True)
class BenchServe:
    """A run of the generator: `concurrency` requests at a time, with random prompts as text."""

    kind: Literal["completions", "chat"]
    concurrency: int
    num_requests: int
    prompt_tokens: int
    max_tokens: int

    def command(self, binary: Path, tokenizer: Path, url: str, served_name: str, seed: int) -> list[str]:
        """The command line, without the place of the result. The tokenizer makes the prompts; servers get text."""
        return [
            *(str(binary), "bench", "serve", "--backend", BACKENDS[self.kind], "--base-url", url),
            *("--model", served_name, "--tokenizer", str(tokenizer)),
            *("--dataset-name", "random", "--random-input-len", str(self.prompt_tokens)),
            *("--random-output-len", str(self.max_tokens), "--ignore-eos", "--temperature", "0"),
            *("--num-prompts", str(self.num_requests), "--max-concurrency", str(self.concurrency)),
            *("--seed", str(seed), "--no-steady-state", "--disable-tqdm"),
            *("--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "99"),
        ]

    def run(self, binary: Path, tokenizer: Path, url: str, served_name: str, seed: int) -> Figures:
        """Run the generator once. Raises LoadError if it or a request fails."""
        with tempfile.TemporaryDirectory(prefix="tritonlive-bench-") as folder:
            command = [
                *self.command(binary, tokenizer, url, served_name, seed),
                *("--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "result.json"),
            ]
            before = children_s()
            done = subprocess.run(
                command, env=os.environ | OFFLINE, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
            )
            spent_s = children_s() - before
            result = Path(folder, "result.json")
            if done.returncode != 0 or not result.is_file():
                raise LoadError(f"vllm-rs bench serve ended with status {done.returncode}:\n{done.stderr[-2000:]}")
            content = json.loads(result.read_text())
        return figures_of(content, self.num_requests * self.max_tokens, starts_with_role=self.kind == "chat") | {
            "client share of a core": spent_s / content["duration"]
        }


def figures_of(result: dict[str, Any], expected_tokens: int, *, starts_with_role: bool) -> Figures:
    """Figures of a result file. Raises LoadError if a request failed, or if tokens are missing.

    starts_with_role: whether each stream's first event is without a token.
    """
    if result["failed"]:
        raise LoadError(f"{result['failed']} requests failed: {str(result.get('failed_requests'))[:500]}")
    tokens = result["total_output_tokens"]
    if tokens != expected_tokens:
        raise LoadError(f"the servers count {tokens} tokens, and {expected_tokens} were asked for")
    first, gaps = result["ttfts"], result["itls"]
    events = sum(len(of_stream) + 1 for of_stream in gaps)
    if starts_with_role:
        first = [role + of_stream[0] for role, of_stream in zip(first, gaps, strict=True)]
        gaps = [of_stream[1:] for of_stream in gaps]
    all_gaps = [gap for of_stream in gaps for gap in of_stream]
    return {
        "seconds": result["duration"],
        "tokens/s": result["output_throughput"],
        "requests/s": result["request_throughput"],
        "completion tokens": float(tokens),
        "ttft mean ms": 1e3 * mean(first),
        "ttft p50 ms": 1e3 * percentile(first, 50),
        "ttft p99 ms": 1e3 * percentile(first, 99),
        "gap p50 ms": 1e3 * percentile(all_gaps, 50),
        "gap p99 ms": 1e3 * percentile(all_gaps, 99),
        "latency p50 ms": result["median_e2el_ms"],
        "latency p99 ms": result["p99_e2el_ms"],
        "events/token": events / tokens,
    }


def children_s() -> float:
    """Processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
