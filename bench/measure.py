"""Measuring: the same job to every system in turn, again and again, and whose processor time it took."""

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from bench.client import Outcome, run_job
from bench.loads import Load
from bench.stats import Spread, ratios
from bench.systems import Server

WARM_UP_SEED = 1_000_000
"""Prompts of a warm-up are not those of a measurement."""
WARM_UP_REQUESTS = 16


@dataclass(frozen=True)
class Measurement:
    """One job on one system."""

    outcome: Outcome
    server_cpu_s: float
    """Processor time of all the system's processes."""
    foreign_share: float
    """Share of the machine's processor time that went to neither the system nor the client: above a few percent,
    somebody else was at work and the figure is worth less."""

    @property
    def cpu_us_per_token(self) -> float:
        """Processor time of the system for each token, in microseconds."""
        return self.server_cpu_s / self.outcome.completion_tokens * 1e6


@dataclass(frozen=True)
class Row:
    """All measurements of one load: one list per system, the n-th of each taken one after the other."""

    load: Load
    by_system: dict[str, list[Measurement]]

    def tokens_per_s(self, system: str) -> Spread:
        """Completion tokens per second."""
        return Spread.of([one.outcome.tokens_per_s for one in self.by_system[system]])

    def ratio(self, ours: str, theirs: str) -> Spread:
        """Tokens per second of one system over the other's, pair by pair."""
        pairs = ([one.outcome.tokens_per_s for one in self.by_system[name]] for name in (ours, theirs))
        return ratios(*pairs)

    def median_of(self, system: str, value: Callable[[Measurement], float | None]) -> float | None:
        """The median of something measured; None where it does not apply."""
        values = [found for one in self.by_system[system] if (found := value(one)) is not None]
        return Spread.of(values).median if values else None


def run_load(
    load: Load, servers: Mapping[str, Server], served_name: str, repeats: int, on_job: Callable[[str], None]
) -> Row:
    """Measure a load on all servers, interleaved: A B B A A B …

    All servers are up all the time and only one is asked at a time (an idle one takes no processor time). The order
    turns round with each repeat, so that a machine that slowly gets faster or slower favours none.

    Args:
        load: what to send.
        servers: the systems by name.
        served_name: the name they serve the model under.
        repeats: measurements per system, after one warm-up.
        on_job: called before each job with what is about to happen.

    Raises:
        LoadError: if any request fails.
    """
    names = list(servers)
    for name in names:
        on_job(f"{load.name}, {name}: warm-up")
        run_job(
            load.job(servers[name].url, served_name, WARM_UP_SEED, num_requests=min(load.concurrency, WARM_UP_REQUESTS))
        )
    by_system: dict[str, list[Measurement]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            on_job(f"{load.name}, {name}: {repeat + 1} of {repeats}")
            by_system[name].append(measure(load, servers[name], served_name, seed=repeat))
    return Row(load, by_system)


def measure(load: Load, server: Server, served_name: str, seed: int) -> Measurement:
    """One job on one server."""
    processes = server.processes()
    server_before, own_before, busy_before, started = _cpu(processes), _own_cpu(), _busy_cpu(), time.perf_counter()
    outcome = run_job(load.job(server.url, served_name, seed))
    server_s, busy_s = _cpu(processes) - server_before, _busy_cpu() - busy_before
    available_s = (time.perf_counter() - started) * (psutil.cpu_count() or 1)
    foreign_s = max(0.0, busy_s - server_s - (_own_cpu() - own_before))
    return Measurement(outcome, server_s, foreign_s / available_s)


def _cpu(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def _own_cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _busy_cpu() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait
