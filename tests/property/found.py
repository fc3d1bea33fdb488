"""Sequences that once served weights under a wrong label; run before the random ones."""

from typing import Any

from .steps import Step


def push(content: int | str, *, is_named: bool = True, **fault: Any) -> Step:
    options = {"content": content, "is_named": is_named, "in_flight": "keep", "keep_previous": True}
    return Step("push", options | {"fault": fault or None})


def rollback(to: int | None = None) -> Step:
    return Step("rollback_one", {"replica": "alpha", "to": to, "fault": None})


def reload(**fault: Any) -> Step:
    return Step("reload_one", {"replica": "alpha", "is_named": True, "fault": fault or None})


def sleep(level: int, fault: str | None = None) -> Step:
    return Step("sleep", {"replica": "alpha", "level": level, "fault": fault})


def wake(*tags: str) -> Step:
    return Step("wake", {"replica": "alpha", "tags": list(tags) or None})


FOUND: dict[str, list[Step]] = {
    "a client's resume during a push to a dirty replica let it generate": [
        push(1),
        Step("reset", {"replica": "alpha"}),
        push(2, kind="interfere", replica="alpha", call="update_weights", action="resume"),
    ],
    "an unchanged push after a failed commit was noted by the id of older weights": [
        push(1),
        push(2, kind="engine", replica="alpha", call="update_weight_version", how="raise"),
        push(2),
        push(3),
        rollback(1),
    ],
    "a rollback after a reload of other files served these by the first ones' name": [
        Step("overwrite", {"content": 1}),
        reload(),
        rollback(),
    ],
    "a rollback after a reload that failed served the new files by the old ones' name": [
        Step("overwrite", {"content": 1}),
        reload(kind="loader", replica="alpha", rank=1, how="half", call="reload"),
        rollback(),
    ],
    "a rollback after a reload that failed late served the new files by the old ones' name": [
        Step("overwrite", {"content": 1}),
        reload(kind="engine", replica="alpha", call="update_weight_version", how="raise"),
        rollback(),
    ],
    "a push to sleeping weights was overwritten by the old ones when they woke": [
        push(1),
        sleep(1),
        push(2),
        wake(),
    ],
    "a push between waking the weights and the KV cache resumed a sleeping engine": [
        sleep(2),
        wake("weights"),
        push(1),
        wake("kv_cache"),
    ],
    "a sleep that failed after it had discarded the weights left the replica serving": [
        sleep(2, fault="raise_after"),
        wake(),
    ],
    "an unchanged push healed a replica whose caches could not be reset, and left them": [
        push(1, kind="engine", replica="alpha", call="reset_prefix_cache", how="refuse"),
        push(1),
    ],
    "the default name after a rollback was that of other weights": [
        push(1, is_named=False),
        push(2, is_named=False),
        Step("rollback", {"to": None, "fault": None}),
        push(3, is_named=False),
    ],
    "the default name after a restart of the engines was that of other weights": [
        push(1, is_named=False),
        Step("kill", {"replica": "alpha"}),
        Step("kill", {"replica": "beta"}),
        push(2, is_named=False),
    ],
    "a fleet went back to a name that a replica's weights no longer had": [
        push(1),
        Step("relabel", {"replica": "alpha"}),
        Step("rollback", {"to": 1, "fault": None}),
    ],
    "a fleet went back to weights that slept at one replica": [
        push(1),
        sleep(1),
        Step("rollback", {"to": 0, "fault": None}),
    ],
    "a fleet went back to a checkpoint that was overwritten": [
        push(1),
        Step("overwrite", {"content": 2}),
        Step("rollback", {"to": 1, "fault": None}),
    ],
}
