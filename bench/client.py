"""The load client: a separate process that sends a job's requests and measures the answers.

It reads the job as JSON from standard input and writes the outcome as JSON to standard output. It shares nothing with
the servers, and its processor time is measured like theirs. Its start and imports are not measured. All systems have
the same client, so its cost is the same for all.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import aiohttp
import uvloop

from bench.meter import StreamError, StreamMeter
from bench.stats import percentile

MODULE = "bench.client"
REQUEST_TIMEOUT_S = 300.0


class LoadError(RuntimeError):
    """A request of the job failed: the measurement is void."""


@dataclass(frozen=True)
class Job:
    """Requests to send: either `concurrency` of them at a time, or each at its time in `arrivals_s`."""

    url: str
    path: str
    bodies: list[dict[str, Any]]
    concurrency: int
    stream: bool
    arrivals_s: list[float] | None = None
    """Seconds from the start at which each request is sent, also while others run; None: `concurrency` applies."""


@dataclass(frozen=True)
class Outcome:
    """Measurements of a job's answers, in seconds. Array calls have no latencies; only streams have TTFT and gaps."""

    wall_s: float
    """From sending the first request to the end of the last answer."""
    client_cpu_s: float
    """Processor time of the client in that time."""
    prompt_tokens: int
    completion_tokens: int
    latency_p50: float | None = None
    latency_p99: float | None = None
    ttft_mean: float | None = None
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    gap_p50: float | None = None
    gap_p99: float | None = None

    def figures(self) -> dict[str, float]:
        """Figures by name, which ends with the unit. Token counts are the server's."""
        figures = {
            "seconds": self.wall_s,
            "tokens/s": self.completion_tokens / self.wall_s,
            "prompt tokens/s": self.prompt_tokens / self.wall_s,
            "completion tokens": float(self.completion_tokens),
            "client share of a core": self.client_cpu_s / self.wall_s,
        }
        for name in ("latency", "ttft", "gap"):
            for rank in ("mean", "p50", "p99"):
                if (seconds := getattr(self, f"{name}_{rank}", None)) is not None:
                    figures[f"{name} {rank} ms"] = seconds * 1e3
        return figures


class Client:
    """A new process of `module` for one job. It imports its libraries at once and then calls `answer_job`."""

    def __init__(self, module: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, job: dict[str, Any]) -> Outcome:
        """Raises LoadError if the job fails."""
        outcome, errors = self._popen.communicate(json.dumps(job))
        if self._popen.returncode != 0:
            raise LoadError(errors.strip()[-2000:])
        return Outcome(**json.loads(outcome))


def run_job(job: Job, client: Client | None = None) -> Outcome:
    """Run the job in `client`, or in a new client.

    Raises:
        LoadError: if a request failed; the message has the answer.
    """
    return (client or Client(MODULE)).run(asdict(job))


def answer_job(run: Callable[[dict[str, Any]], Outcome]) -> None:
    """Read a job from standard input, run it, and write its outcome to standard output."""
    try:
        outcome = run(json.load(sys.stdin))
    except LoadError as error:
        sys.exit(str(error))
    json.dump(asdict(outcome), sys.stdout)


def open_session() -> aiohttp.ClientSession:
    """A session without a limit on connections, so that no request waits for another."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


@asynccontextmanager
async def answer_to(session: aiohttp.ClientSession, url: str, payload: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
    """POST JSON; returns the response before its body is read. Raises LoadError for an error status."""
    async with session.post(url, data=payload, headers={"Content-Type": "application/json"}) as response:
        if response.status != 200:
            raise LoadError(f"{response.url.path} answered {response.status}: {(await response.text())[:500]}")
        yield response


async def send_all(job: Job) -> Outcome:
    """Send the job's requests and measure the answers.

    Raises:
        LoadError: as soon as a request fails.
    """
    payloads = [json.dumps(body).encode() for body in job.bodies]
    answers: list[Answered] = []
    async with open_session() as session:
        cpu_started, started = time.process_time(), time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for worker in _workers(session, job, payloads, answers):
                    group.create_task(worker)
        except* (LoadError, StreamError, aiohttp.ClientError, TimeoutError) as errors:
            raise LoadError(repr(errors.exceptions[0])) from errors
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return outcome_of(answers, wall_s, cpu_s)


@dataclass(frozen=True)
class Answered:
    """One complete answer: times in seconds, and the server's token counts."""

    latency: float
    usage: dict[str, Any]
    ttft: float | None = None
    gaps: tuple[float, ...] = ()


def _workers(
    session: aiohttp.ClientSession, job: Job, payloads: list[bytes], answers: list[Answered]
) -> Iterator[Coroutine[Any, Any, None]]:
    """Coroutines that send the requests: one per concurrent request, or one per request with its time."""
    if job.arrivals_s is not None:
        for after_s, payload in zip(job.arrivals_s, payloads, strict=True):
            yield _worker(session, job, iter([payload]), answers, after_s)
        return
    queue = iter(payloads)  # shared by all senders: a free sender takes the next request
    for _ in range(min(job.concurrency, len(payloads))):
        yield _worker(session, job, queue, answers)


async def _worker(
    session: aiohttp.ClientSession,
    job: Job,
    queue: Iterator[bytes],
    answers: list[Answered],
    after_s: float = 0.0,
) -> None:
    if after_s:
        await asyncio.sleep(after_s)
    answers.extend([await _send(session, job, payload) for payload in queue])


async def _send(session: aiohttp.ClientSession, job: Job, payload: bytes) -> Answered:
    started = time.perf_counter()
    async with answer_to(session, job.url + job.path, payload) as response:
        if not job.stream:
            body = await response.read()
            return Answered(time.perf_counter() - started, json.loads(body)["usage"])
        meter = StreamMeter(started)
        async for chunk in response.content.iter_any():
            meter.feed(chunk, time.perf_counter())
        return Answered(time.perf_counter() - started, meter.usage(), meter.ttft, tuple(meter.gaps))


def outcome_of(answers: list[Answered], wall_s: float, cpu_s: float) -> Outcome:
    latencies = [answer.latency for answer in answers]
    ttfts = [answer.ttft for answer in answers if answer.ttft is not None]
    gaps = [gap for answer in answers for gap in answer.gaps]
    return Outcome(
        wall_s=wall_s,
        client_cpu_s=cpu_s,
        prompt_tokens=sum(answer.usage["prompt_tokens"] for answer in answers),
        completion_tokens=sum(answer.usage["completion_tokens"] for answer in answers),
        latency_p50=percentile(latencies, 50),
        latency_p99=percentile(latencies, 99),
        ttft_mean=mean(ttfts) if ttfts else None,
        ttft_p50=percentile(ttfts, 50) if ttfts else None,
        ttft_p99=percentile(ttfts, 99) if ttfts else None,
        gap_p50=percentile(gaps, 50) if gaps else None,
        gap_p99=percentile(gaps, 99) if gaps else None,
    )


if __name__ == "__main__":
    answer_job(lambda job: uvloop.run(send_all(Job(**job))))
