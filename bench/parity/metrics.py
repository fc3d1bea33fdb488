"""Compares vLLM's serving metrics at both servers: what the same requests add to every counter and histogram.

Requests are sent one at a time, or as one group, and `/metrics` is read before and after each. Counts must be equal.
Sums of seconds must be positive and plausible, because no two runs take the same time.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bench.parity.shape import MODEL, Shape, chat, completion

SETTLED_S = 0.4
"""Nothing changes for this long: counts of a step that was sent late have arrived (at most 0.1 s late)."""
REQUEST_TIMEOUT_S = 120.0

Samples = dict[str, float]
"""Values by series: name and labels, without the labels that all series share."""


@dataclass(frozen=True)
class Probe:
    """Requests that are sent together, and the series whose counts depend on how the engine batches them."""

    name: str
    shapes: Sequence[Shape]
    loose: frozenset[str] = frozenset()
    """Beginnings of names that are compared as seconds are: positive or 0 at both servers."""
    leaves_after: int | None = None
    """The client leaves after this many events of its stream."""


@dataclass
class Growth:
    """What a probe added to a server's metrics."""

    seconds: float
    """How long the probe took."""
    samples: Samples = field(default_factory=dict)


def probes() -> list[Probe]:
    """Whole and streamed, one and several answers, and every way to end."""
    text: dict[str, Any] = {"max_tokens": 50, "ignore_eos": True}
    sampled: dict[str, Any] = {**text, "temperature": 1, "seed": 7}
    # The engine may begin several generations in one step or in two.
    batched = frozenset({"vllm:iteration_tokens_total_count", "vllm:iteration_tokens_total_bucket"})
    prefixes = frozenset({"vllm:prompt_tokens_by_source", "vllm:prompt_tokens_cached", "vllm:prefix_cache_hits"})
    cached = batched | prefixes | {"vllm:iteration_tokens_total", "vllm:request_prefill_kv_computed"}
    return [
        Probe("whole", [completion("whole", **text)]),
        Probe("streamed", [completion("streamed", stream=True, **text)]),
        Probe("chat whole", [chat("whole", **text)]),
        Probe("chat streamed", [chat("streamed", stream=True, **text)]),
        Probe("logprobs", [completion("logprobs", logprobs=2, **text)]),
        Probe("stop string", [completion("stop", stop=["zzzzzz"], **text)]),
        Probe("n=4 whole", [completion("n", n=4, **sampled)], cached),
        Probe("n=4 streamed", [completion("n/stream", n=4, stream=True, **sampled)], cached),
        Probe("one token", [completion("one", max_tokens=1)]),
        Probe("16 at once", [completion(f"many/{i}", f"Number {i} of many", **text) for i in range(16)], cached),
        Probe("refused", [completion("refused", max_tokens=-1)]),
        Probe(
            "client leaves",
            [completion("leaves", stream=True, max_tokens=2000, ignore_eos=True)],
            frozenset({"vllm:generation_tokens", "vllm:inter_token_latency", *cached}),
            leaves_after=5,
        ),
    ]


async def measure(url: str, chosen: Sequence[Probe]) -> dict[str, Growth]:
    """Send every probe to the server; returns what each added to its metrics."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        await asyncio.gather(*(send(session, shape, None) for shape in chosen[0].shapes))  # warm
        grown = {}
        for probe in chosen:
            before = await settled(session)
            started = time.monotonic()
            await asyncio.gather(*(send(session, shape, probe.leaves_after) for shape in probe.shapes))
            seconds = time.monotonic() - started
            after = await settled(session)
            added = {name: value - before.get(name, 0) for name, value in after.items()}
            grown[probe.name] = Growth(seconds, {name: value for name, value in added.items() if value})
        return grown


async def send(session: aiohttp.ClientSession, shape: Shape, leaves_after: int | None) -> None:
    """Send one request and read its answer to the end, or leave its stream."""
    async with session.post(shape.path, json=shape.body) as response:
        if leaves_after is None:
            await response.read()
            return
        for _ in range(leaves_after):
            await response.content.readuntil(b"\n\n")
        response.close()


async def settled(session: aiohttp.ClientSession) -> Samples:
    """The server's counts, when they no longer change."""
    samples = await scrape(session)
    while True:
        await asyncio.sleep(SETTLED_S)
        before, samples = samples, await scrape(session)
        if samples == before:
            return samples


async def scrape(session: aiohttp.ClientSession) -> Samples:
    """vLLM's counters and histograms."""
    async with session.get("/metrics") as response:
        text = await response.text()
        families = parse(text, response.content_type)
    samples = {}
    for family in families:
        if family.name.startswith("vllm:") and family.type in ("counter", "histogram"):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    samples[series(sample.name, sample.labels)] = sample.value
    return samples


def parse(text: str, content_type: str) -> Iterable[Metric]:
    """The metrics in `text`. The Rust front end answers in OpenMetrics, vLLM's Python server in Prometheus' format."""
    return (parse_openmetrics if "openmetrics" in content_type else text_string_to_metric_families)(text)


def series(name: str, labels: Mapping[str, str]) -> str:
    """A series' name with its own labels."""
    own = ",".join(f"{key}={value}" for key, value in sorted(labels.items()) if value not in (MODEL, "0"))
    return f"{name}{{{own}}}" if own else name


def is_time(name: str) -> bool:
    """Whether the series' value depends on how fast a server is."""
    return "_seconds_sum" in name or "_seconds_bucket" in name


def differences(probe: Probe, theirs: Growth, ours: Growth) -> list[str]:
    """One line for every series that the probe changed otherwise at our server."""
    lines = []
    for name in sorted(theirs.samples.keys() | ours.samples.keys()):
        left, right = theirs.samples.get(name, 0), ours.samples.get(name, 0)
        if name.startswith(tuple(probe.loose)):
            if min(left, right) < 0:
                lines.append(f"{probe.name}: {name}: {left:g} and {right:g}: a count fell")
        elif "_seconds_sum" in name:
            most = ours.seconds * max(1.0, ours.samples.get(name.replace("_sum", "_count"), 0))
            if not 0 <= right <= most:
                lines.append(f"{probe.name}: {name}: {right:g} s in a probe of {ours.seconds:.1f} s")
        elif not is_time(name) and left != right:
            lines.append(f"{probe.name}: {name}: {left:g} at vLLM, {right:g} here")
    return lines


def cell(name: str, theirs: Growth, ours: Growth) -> str:
    """One value if both servers counted the same, else both."""
    left, right = theirs.samples.get(name, 0), ours.samples.get(name, 0)
    if is_time(name):
        return f"{left:.2g} / {right:.2g}"
    return f"{left:g}" if left == right else f"{left:g} / {right:g}"
