"""The verdict of a run: what grew, and which answers were errors outside a kill."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from bench.soak.load import Answer
from bench.soak.samples import Sample

ALLOWED_GROWTH = {"rss_mib": (0.10, 60.0), "pss_mib": (0.10, 60.0), "descriptors": (0.10, 12), "threads": (0.10, 6)}
"""What a process may grow by from the first to the last fifth after its warm-up: a share, and at least an amount."""
PERCENTILES = (0.5, 0.99)


@dataclass(frozen=True)
class Kill:
    """A process that was killed, and how long the stack needed."""

    role: str
    at_s: float
    recovered_s: float | None
    """Seconds until a completion was answered; None: never."""


@dataclass
class Run:
    """What was seen. Times are seconds since the load began."""

    warm_up_s: float
    samples: list[Sample] = field(default_factory=list)
    shared_memory_mib: list[tuple[float, float]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    pushes: list[Answer] = field(default_factory=list)
    """Pushes; the outcome is `answered` or the error."""
    crashes: list[str] = field(default_factory=list)
    """Lines of the kernel's log about a SIGSEGV, core dumps, and why the run ended early."""

    def as_json(self) -> dict[str, Any]:
        """All of it, for the results file; of the answers, those that failed and the figures."""
        failed = [answer for answer in self.answers if answer.outcome != "answered"]
        return asdict(replace(self, answers=failed)) | {
            "verdict": self.verdict(),
            "statuses": self.statuses(),
            "latency": self.latency(),
        }

    def verdict(self) -> list[str]:
        """What is wrong; empty if nothing is."""
        return [
            *(
                f"{role} {pid}: {what} grew from {first:g} to {last:g}"
                for role, pid, what, first, last in self.growth()
            ),
            *(
                f"{kill.role} killed at {kill.at_s:.0f} s: did not come back"
                for kill in self.kills
                if kill.recovered_s is None
            ),
            *(f"{count} x {kind}: {outcome}, outside a kill" for (kind, outcome), count in self.unexpected().items()),
            *self.crashes,
        ]

    def growth(self) -> list[tuple[str, int, str, float, float]]:
        """(role, pid, what, first, last) of each process that has grown too much after its warm-up."""
        series: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        for sample in self.samples:
            series[sample.role, sample.pid].append(sample)
        found = []
        for (role, pid), own in series.items():
            warm = [sample for sample in own if sample.at_s >= own[0].at_s + self.warm_up_s]
            fifth = len(warm) // 5
            for what, (share, amount) in ALLOWED_GROWTH.items() if fifth else ():
                first, last = (median(getattr(each, what) for each in part) for part in (warm[:fifth], warm[-fifth:]))
                if last - first > max(share * first, amount):
                    found.append((role, pid, what, first, last))
        return found

    def unexpected(self) -> Counter[tuple[str, str]]:
        """Answers and pushes that are not `answered` and did not run while the stack recovered from a kill."""
        return Counter(
            (answer.kind, answer.outcome)
            for answer in (*self.answers, *self.pushes)
            if answer.outcome != "answered" and not any(_overlaps(answer, kill) for kill in self.kills)
        )

    def statuses(self) -> dict[str, dict[str, int]]:
        """How many answers of each outcome, by kind of request."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for answer in self.answers:
            counts[answer.kind][answer.outcome] += 1
        return {kind: dict(outcomes) for kind, outcomes in sorted(counts.items())}

    def latency(self) -> dict[str, list[float]]:
        """Seconds of the answers that succeeded, at PERCENTILES, by kind."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for answer in self.answers:
            if answer.outcome == "answered":
                seconds[answer.kind].append(answer.seconds)
        return {kind: percentiles(values) for kind, values in sorted(seconds.items())}


def percentiles(values: Sequence[float]) -> list[float]:
    """The values at PERCENTILES."""
    ordered = sorted(values)
    return [round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for share in PERCENTILES]


def _overlaps(answer: Answer, kill: Kill) -> bool:
    """Whether the request ran at any moment between the kill and the recovery."""
    end = float("inf") if kill.recovered_s is None else kill.at_s + kill.recovered_s
    return answer.began_s <= end and answer.began_s + answer.seconds >= kill.at_s
