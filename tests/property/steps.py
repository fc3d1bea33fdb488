"""The steps that a sequence is made of, drawn at random; as plain values, so that a sequence can be replayed."""

import random
from dataclasses import dataclass, field
from typing import Any

from .contents import NUM_CONTENTS

REPLICAS = ("alpha", "beta")
WORLD_SIZES = {"alpha": 2, "beta": 1}
MIN_STEPS, MAX_STEPS = 6, 10
COMMIT_CALLS = ("prepare_weight_update", "finish_weight_update")
PUSH_CALLS = (
    "reserve_lease",
    "init_weight_transfer_engine",
    "start_weight_update",
    "update_weights",
    *COMMIT_CALLS,
)
# What an engine fault hits, and how often.
ENGINE_CALLS = {
    "connect": 1,
    "start": 1,
    "update": 1,
    "prepare": 8,
    "pause_scheduler": 9,
    "load": 1,
    "update_weight_version": 1,
    "reset_prefix_cache": 1,
    "resume_generation": 1,
    "report": 1,
}
RANK_CALLS = frozenset({"start", "update", "prepare"})
LOAD_FAILURES = ("before", "half", "after", "failed")
INTERFERENCES = {
    "fence": 6,
    "kill": 5,
    **dict.fromkeys(("resume", "pause", "evict", "reset", "sleep", "rollback", "relabel", "reload"), 1),
}


@dataclass(frozen=True)
class Step:
    """One step: what is done, and how."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> list[Any]:
        return [self.kind, self.options]

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kind}({shown})"


def draw_steps(seed: int, index: int) -> list[Step]:
    """The sequence of that number; the same for the same seed."""
    rng = random.Random(f"{seed}/{index}")  # noqa: S311 - not a secret
    steps = [Step("push", draw_push(rng, fault="none"))] if rng.random() < 0.7 else []
    number = rng.randint(MIN_STEPS, MAX_STEPS)
    while len(steps) < number:
        steps += draw_step(rng)
    return steps[:number]


def draw_step(rng: random.Random) -> list[Step]:
    """One step, or a few that belong together."""
    kind = weighted(rng, WEIGHTS)
    where = {"replica": rng.choice(REPLICAS)}
    match kind:
        case "push":
            return [Step(kind, draw_push(rng))]
        case "partial":
            return [Step(kind, {"content": rng.randrange(NUM_CONTENTS), "tensors": rng.randint(1, 5)})]
        case "rollback" | "rollback_one":
            to = rng.choice([None, None, None, 0, 1, 2, "unknown"])
            options = {"to": to, "fault": draw_restore_fault(rng, "restore", where["replica"])}
            return [Step(kind, options | (where if kind == "rollback_one" else {}))]
        case "reload" | "reload_one":
            options = {"is_named": rng.random() < 0.5, "fault": draw_restore_fault(rng, "reload", where["replica"])}
            return [Step(kind, options | (where if kind == "reload_one" else {}))]
        case "sleep":
            level = rng.choice([1, 2])
            middle = [Step("push", draw_push(rng, fault="none"))] if rng.random() < 0.4 else []
            if rng.random() < 0.5:
                woken = [Step("wake", where | {"tags": [tag]}) for tag in ("weights", "kv_cache")]
                return [Step("sleep", where | {"level": level, "fault": None}), woken[0], *middle, woken[1]]
            fault = rng.choice([None, None, "raise", "raise_after"])
            sleep = Step("sleep", where | {"level": level, "fault": fault})
            return [sleep, *middle, Step("wake", where | {"tags": None})]
        case "pause":
            middle = [Step("push", draw_push(rng, fault="none"))] if rng.random() < 0.5 else []
            return [Step("pause", where), *middle, *([Step("resume", where)] if rng.random() < 0.7 else [])]
        case "overwrite":
            return [Step(kind, {"content": rng.randrange(NUM_CONTENTS)})]
        case "second_trainer" | "catch_up" | "leave":
            return [Step(kind, {"content": rng.randrange(NUM_CONTENTS)} if kind == "second_trainer" else {})]
        case "fenced" | "dirty":
            # A replica in a state that refuses, and operations that may lead out of it.
            into = Step("fence", where) if kind == "fenced" else Step("reset", where)
            return [into, draw_way_out(rng, where)]
        case _:
            return [Step(kind, where)]


WEIGHTS = {
    "push": 46,
    "partial": 3,
    "rollback": 7,
    "rollback_one": 14,
    "reload": 3,
    "reload_one": 10,
    "reset": 2,
    "fence": 2,
    "fenced": 16,
    "dirty": 14,
    "sleep": 8,
    "pause": 7,
    "relabel": 4,
    "kill": 3,
    "overwrite": 4,
    "second_trainer": 2,
    "catch_up": 4,
    "leave": 2,
    "abort": 1,
}


def draw_way_out(rng: random.Random, where: dict[str, Any]) -> Step:
    choice = rng.choice(["kill", *["rollback"] * 4, "reload", "reload", "push", "push_abort", "push_abort"])
    match choice:
        case "kill":
            return Step("kill", where)
        case "rollback":
            return Step("rollback_one", {"to": None, "fault": None} | where)
        case "reload":
            return Step("reload_one", {"is_named": rng.random() < 0.5, "fault": None} | where)
        case "push":
            return Step("push", draw_push(rng, fault="none"))
        case _:
            fault = {"kind": "wire", "calls": [rng.choice(["update_weights", "prepare_weight_update"])]}
            fault |= {"hows": [rng.choice(["lose_call", "lose_answer"])]} | {"replica": rng.choice(REPLICAS)}
            return Step("push", draw_push(rng, fault="none") | {"fault": fault})


def draw_push(rng: random.Random, fault: str | None = None) -> dict[str, Any]:
    kind = fault or weighted(rng, FAULTS)
    return {
        "content": "same" if rng.random() < 0.12 else rng.randrange(NUM_CONTENTS),
        "is_named": rng.random() < 0.6,
        "in_flight": rng.choice(["keep", "wait", "abort"]),
        "keep_previous": rng.random() < 0.85,
        "fault": draw_fault(rng, kind),
    }


FAULTS = {"none": 26, "nan": 3, "shape": 1, "loader": 16, "wire": 14, "engine": 28, "interfere": 26, "trainer": 8}


def draw_fault(rng: random.Random, kind: str) -> dict[str, Any] | None:
    replica = rng.choice(REPLICAS)
    match kind:
        case "none":
            return None
        case "loader":
            rank = rng.choice([None, *range(WORLD_SIZES[replica])])
            return {"kind": kind, "replica": replica, "rank": rank, "how": rng.choice(LOAD_FAILURES)}
        case "wire":
            if rng.random() < 0.3:  # a commit with an unknown outcome
                calls = ["finish_weight_update", "abort_weight_update", *rng.choice([[], ["fence"]])]
            else:
                calls = [rng.choice([*PUSH_CALLS, *COMMIT_CALLS, *COMMIT_CALLS])]
            hows = [rng.choice(["lose_call", "lose_answer", "late"]) for _ in calls]
            return {"kind": kind, "replica": replica, "calls": calls, "hows": hows}
        case "engine":
            call = weighted(rng, ENGINE_CALLS)
            how = rng.choice(["die_before", "die_after", "raise", "raise_after"])
            if call in RANK_CALLS and rng.random() < 0.75:
                rank = rng.choice([None, *range(WORLD_SIZES[replica])])
                return {"kind": "loader", "replica": replica, "rank": rank, "how": "rejected", "call": call}
            if call == "reset_prefix_cache" and rng.random() < 0.5:
                how = "refuse"
            return {"kind": kind, "replica": replica, "call": call, "how": how}
        case "interfere":
            call = rng.choice([*PUSH_CALLS[3:], *COMMIT_CALLS])
            return {"kind": kind, "replica": replica, "call": call, "action": weighted(rng, INTERFERENCES)}
        case "trainer":
            return {"kind": kind, "replica": replica, "call": rng.choice(["transfer", *PUSH_CALLS[2:]])}
        case _:
            return {"kind": kind}


def draw_restore_fault(rng: random.Random, operation: str, replica: str) -> dict[str, Any] | None:
    if rng.random() < 0.35:
        return None
    if rng.random() < 0.8:
        rank = rng.choice([None, *range(WORLD_SIZES[replica])])
        how = rng.choice(["before", "half", "after", "failed"])
        return {"kind": "loader", "replica": replica, "rank": rank, "how": how, "call": operation}
    if rng.random() < 0.5 and operation == "restore":
        hows = [rng.choice(["lose_call", "lose_answer", "late"])]
        return {"kind": "wire", "replica": replica, "calls": ["rollback"], "hows": hows}
    call = rng.choice(["report", operation, "update_weight_version", "reset_prefix_cache", "resume_generation"])
    return {"kind": "engine", "replica": replica, "call": call, "how": rng.choice(["die_before", "die_after", "raise"])}


def weighted(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
