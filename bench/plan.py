"""The loads of each model, and their goals."""

from typing import Any, Protocol

from bench.array_loads import Rollouts, TeacherScores
from bench.goals import Goal
from bench.hop_load import HopLoad
from bench.loads import Chat, ChatBatch, Completions, Poisson, Teacher
from bench.measure import Load, Side
from bench.push import MixedLoad, PushFleet, PushPause, PushTotal
from bench.scale import Replicas, Workers
from bench.start import StartFirstToken
from bench.systems import Systems


class PlannedLoad(Load, Protocol):
    """A load that starts its systems."""

    def sides(self, systems: Systems) -> tuple[Side, ...]:
        """Ours, and the other side if there is one. Starts their systems."""
        ...


def plan(model: str, *, quick: bool) -> list[PlannedLoad]:
    """The loads for a model: those dominated by serving for `tiny`, those dominated by the model for all others.

    `quick` omits the longest loads.
    """
    return _tiny(quick=quick) if model == "tiny" else _real(quick=quick)


def _tiny(*, quick: bool) -> list[PlannedLoad]:
    loads: list[PlannedLoad] = [HopLoad(concurrency=128, max_tokens=512, goals=hop())]
    for concurrency in (64,) if quick else (16, 64, 128):
        num_requests = min(4 * concurrency, 256)
        size: dict[str, Any] = {"concurrency": concurrency, "num_requests": num_requests, "max_tokens": 64}
        loads.append(Completions(**size, goals=(throughput(1.0),)))
        streaming = (throughput(1.0), gap(1.1))
        loads += [kind(**size, stream=True, goals=streaming) for kind in (Completions, Chat)]
    single: dict[str, Any] = {"concurrency": 1, "num_requests": 16, "max_tokens": 64}
    loads += [kind(**single, stream=True, goals=(throughput(), first_token(2.0))) for kind in (Completions, Chat)]
    loads += [Rollouts(num_prompts=16, max_tokens=64, goals=(throughput(1.5),)), TeacherScores(goals=(scoring(4.0),))]
    if not quick:
        loads.append(Poisson(rate=40, concurrency=1, num_requests=120, max_tokens=64, stream=True, goals=latencies()))
    return loads


def _real(*, quick: bool) -> list[PlannedLoad]:
    loads: list[PlannedLoad] = []
    for concurrency in (1, 16) if quick else (1, 16, 64):
        size: dict[str, Any] = {"concurrency": concurrency, "num_requests": max(6, concurrency), "max_tokens": 16}
        streaming = (throughput(0.99), *((first_token(2.0),) if concurrency == 1 else ()))
        loads.append(Completions(**size, goals=(throughput(0.99),)))
        loads.append(Chat(**size, stream=True, goals=streaming))
        if not quick:
            loads.append(Completions(**size, stream=True, goals=streaming))
            loads.append(Chat(**size, goals=(throughput(0.99),)))
    loads.append(ChatBatch(concurrency=64, num_requests=64, max_tokens=16, goals=(duration(1.05),)))
    if not quick:
        loads.append(Teacher(concurrency=1, num_requests=1, max_tokens=1, prompt_words=512, goals=(scoring(1.0),)))
        loads.append(TeacherScores(goals=(scoring(4.0),)))
        loads.append(Rollouts(num_prompts=8, max_tokens=32, goals=(throughput(),)))
        loads.append(Poisson(rate=4, concurrency=1, num_requests=16, max_tokens=16, stream=True, goals=latencies()))
        long: dict[str, Any] = {"kind": "long", "prompt_words": 1500, "goals": (throughput(),)}
        loads.append(Completions(concurrency=4, num_requests=4, max_tokens=16, **long))
        loads.append(MixedLoad())
    loads += [PushTotal(), PushPause()]
    # Last: these two need the whole machine, and a start needs the caches that earlier loads filled.
    return loads if quick else [*loads, StartFirstToken(), PushFleet()]


def extras() -> list[PlannedLoad]:
    """Loads of every model that run only if `--only` names them."""
    return [Workers(), Replicas()]


def throughput(target: float | None = None) -> Goal:
    """Completion tokens per second."""
    return Goal("tokens/s", "higher", target)


def scoring(target: float | None = None) -> Goal:
    """Prompt tokens per second."""
    return Goal("prompt tokens/s", "higher", target)


def duration(target: float | None = None) -> Goal:
    """Seconds from the first request to the last answer."""
    return Goal("seconds", "lower", target)


def gap(target: float | None = None) -> Goal:
    """Gaps between the tokens of a stream."""
    return Goal("gap p99 ms", "lower", target, label="gap p99")


def first_token(target: float | None = None) -> Goal:
    """Added time to the first token."""
    return Goal("ttft p50 ms", "lower", target, compare="added", label="TTFT")


def hop() -> tuple[Goal, ...]:
    """Throughput of Triton, and its number of messages."""
    messages = Goal("messages/s", "higher", compare="absolute", label="messages")
    steps = Goal("steps/message", "lower", compare="absolute", label="steps")
    return Goal("tokens/s", "higher", 50_000, compare="absolute"), messages, steps


def latencies() -> tuple[Goal, ...]:
    """Latencies of a load whose arrival rate determines the throughput; reported only."""
    figures = ("ttft p50 ms", "ttft p99 ms", "gap p50 ms", "gap p99 ms")
    waits = [Goal(figure, "lower", label=figure.removesuffix(" ms").replace("ttft", "TTFT")) for figure in figures]
    return throughput(), *waits
