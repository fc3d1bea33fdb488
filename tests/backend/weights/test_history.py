"""The history of updates, and the count of running requests."""

import time

from tritonlive.backend.weights.history import KEPT_RECORDS, History, InFlight, WeightStatistics, size_of
from tritonlive.wire.outcomes import Outcome


def test_updates_are_counted_by_outcome() -> None:
    updates = History()
    for outcome in (Outcome.COMMITTED, Outcome.FAILED, Outcome.COMMITTED, Outcome.UNCHANGED):
        record = updates.begin("push", "me")
        assert record.outcome is Outcome.RUNNING
        record.num_bytes = 10
        updates.end(record, outcome, "v1", "why" if outcome is Outcome.FAILED else None)
    assert dict(updates.outcomes) == {"committed": 2, "failed": 1, "unchanged": 1}
    assert updates.pushed_bytes == 30
    assert [update["outcome"] for update in updates.describe()] == ["committed", "failed", "committed", "unchanged"]
    assert updates.last is not None
    assert updates.last.result()["is_changed"] is False


def test_an_update_ends_once() -> None:
    """The engine dies, and the call that waited for it fails."""
    updates = History()
    record = updates.begin("push", "me")
    updates.end(record, Outcome.FAILED, None, "the engine died")
    updates.end(record, Outcome.ABORTED, "v1", "no answer")
    assert (record.outcome, record.reason) == ("failed", "the engine died")
    assert dict(updates.outcomes) == {"failed": 1}


def test_phases_are_timed_and_add_up() -> None:
    updates = History()
    record = updates.begin("push", "me")
    for phase in ("drain_s", "load_s", "flush_s", "flush_s"):
        with record.timed(phase):
            time.sleep(0.01)
    updates.end(record, Outcome.COMMITTED, "v1")
    assert 0.04 <= record.pause_s == record.drain_s + record.load_s + record.flush_s <= record.total_s
    assert record.flush_s >= 0.02


def test_only_the_last_are_kept() -> None:
    updates = History()
    for number in range(KEPT_RECORDS + 5):
        updates.end(updates.begin("push", None), Outcome.COMMITTED, f"v{number}")
    assert len(updates.records) == KEPT_RECORDS
    assert updates.records[0].weight_version == "v5"


def test_requests_that_began_with_older_weights() -> None:
    running = InFlight()
    running.begin("a")
    running.version = "v1"
    running.begin("b")
    assert (running.by_version(), running.num_stale) == ({"default": 1, "v1": 1}, 1)
    running.end("a")
    running.end("a")
    assert (running.by_version(), running.num_stale) == ({"v1": 1}, 0)


def test_the_size_of_what_is_announced() -> None:
    info = {"names": ["a", "b"], "dtype_names": ["bfloat16", "float32"], "shapes": [[2, 3], []]}
    assert size_of(info) == (2, 16)
    assert size_of({}) == (0, 0)


def test_statistics() -> None:
    updates, running = History(), InFlight()
    record = updates.begin("push", "me")
    record.drain_s, record.load_s, record.num_bytes = 0.125, 0.5, 7
    updates.end(record, Outcome.COMMITTED, "v1")
    updates.end(updates.begin("push", "me"), Outcome.ABORTED, "v1")
    found = WeightStatistics.of(updates, running)
    assert (found.weight_updates_committed_total, found.weight_updates_aborted_total) == (1, 1)
    assert (found.weight_update_pause_seconds, found.weight_bytes_total) == (0.625, 7)
