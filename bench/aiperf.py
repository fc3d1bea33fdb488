"""Streams from NVIDIA's `aiperf`, a load generator in Python.

It is not in the lock: install it in an environment of its own and name the program. Its processes take about as much of
the processor as the server, and start slowly, so processor times measured with it include the server's idle time.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.bench_serve import children_s
from bench.client import LoadError
from bench.measure import Figures

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Aiperf:
    """A run of the program: `concurrency` requests at a time, with random prompts as text."""

    kind: Literal["completions", "chat"]
    concurrency: int
    num_requests: int
    prompt_tokens: int
    max_tokens: int

    def command(self, program: Path, tokenizer: Path, url: str, served_name: str, seed: int) -> list[str]:
        """The command line, without the place of the result. The server counts the tokens."""
        return [
            *(str(program), "profile", "--model", served_name, "--url", url, "--tokenizer", str(tokenizer)),
            *("--endpoint-type", self.kind, "--streaming", "--use-server-token-count"),
            *("--isl", str(self.prompt_tokens), "--osl", str(self.max_tokens)),
            *("--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"),
            *("--request-count", str(self.num_requests), "--concurrency", str(self.concurrency)),
            *("--random-seed", str(seed), "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
        ]

    def run(self, program: Path, tokenizer: Path, url: str, served_name: str, seed: int) -> Figures:
        """Run the program once. Raises LoadError if it or a request fails."""
        # Offline, it takes a local tokenizer for a hub's.
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        with tempfile.TemporaryDirectory(prefix="tritonlive-bench-") as folder:
            command = [*self.command(program, tokenizer, url, served_name, seed), "--artifact-dir", folder]
            before = children_s()
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
            spent_s = children_s() - before
            result = Path(folder, "profile_export_aiperf.json")
            if done.returncode != 0 or not result.is_file():
                raise LoadError(f"aiperf ended with status {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
            content = json.loads(result.read_text())
        figures = figures_of(content, self.num_requests * self.max_tokens)
        return figures | {"client share of a core": spent_s / figures["seconds"]}


def figures_of(result: dict[str, Any], expected_tokens: int) -> Figures:
    """Figures of a result file. Raises LoadError if a request failed, or if tokens are missing."""
    if result["error_summary"]:
        raise LoadError(f"requests failed: {str(result['error_summary'])[:500]}")
    tokens = result["total_usage_completion_tokens"]["avg"]
    if tokens != expected_tokens:
        raise LoadError(f"the servers count {tokens:.0f} tokens, and {expected_tokens} were asked for")
    first, gaps = result["time_to_first_token"], result["inter_chunk_latency"]
    return {
        "seconds": result["benchmark_duration"]["avg"],
        "tokens/s": tokens / result["benchmark_duration"]["avg"],
        "completion tokens": tokens,
        "ttft mean ms": first["avg"],
        "ttft p50 ms": first["p50"],
        "ttft p99 ms": first["p99"],
        "gap p50 ms": gaps["p50"],
        "gap p99 ms": gaps["p99"],
    }
