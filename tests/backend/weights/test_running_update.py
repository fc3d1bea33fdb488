"""A running update: its deadline, its expiry, and what its ranks' answers mean."""

import asyncio
import time
from typing import Any

import pytest

from tritonlive.backend.tensors import Conflict
from tritonlive.backend.weights.history import Record
from tritonlive.backend.weights.running_update import RunningUpdate, commit_timeout_s
from tritonlive.backend.weights.worker_calls import RankStatus, WorkersFailed
from tritonlive.wire.outcomes import Code


def update(**options: Any) -> RunningUpdate:
    values: dict[str, Any] = {"timeout_s": 60.0} | options
    return RunningUpdate("u1", Record("push", "trainer", "u1"), "keep", **values)


def status(rank: int, code: Code = Code.OK, **fields: Any) -> RankStatus:
    return RankStatus(rank, code, "", {"current": None, "is_unchanged": False, "digest": "d"} | fields)


async def test_it_expires_once_and_not_after_its_end() -> None:
    expired: list[RunningUpdate] = []

    async def on_expired(late: RunningUpdate) -> None:
        late.cancel_expiry()  # ending it does not cancel this very call
        await asyncio.sleep(0)
        expired.append(late)

    late, ended = update(timeout_s=0.01), update(timeout_s=0.01)
    late.expire(on_expired)
    ended.expire(on_expired)
    ended.cancel_expiry()
    ended.cancel_expiry()
    await asyncio.sleep(0.1)
    assert expired == [late]


def test_a_commit_has_time_for_its_bytes() -> None:
    late = update(timeout_s=0.0)
    late.record.num_bytes = 10**10
    assert late.commit_deadline - time.monotonic() == pytest.approx(commit_timeout_s(10**10), abs=1)
    assert update(timeout_s=3600.0).commit_deadline - time.monotonic() == pytest.approx(3600, abs=1)


@pytest.mark.parametrize(
    ("statuses", "held"),
    [
        ([], None),
        ([status(0, current="a", is_unchanged=True), status(1, current="a", is_unchanged=True)], "a"),
        ([status(0, current="a", is_unchanged=True), status(1, current="b", is_unchanged=True)], None),
        ([status(0, current="a", is_unchanged=True), status(1, current="a")], None),
    ],
)
def test_it_is_unchanged_only_if_all_ranks_hold_it_by_one_id(statuses: list[RankStatus], held: str | None) -> None:
    running = update(prepared=statuses)
    assert (running.held_id, running.is_unchanged) == (held, held is not None)


@pytest.mark.parametrize(
    ("statuses", "is_touched"),
    [
        ([status(0, Code.FAILED), status(1, Code.FAILED)], False),
        ([status(0, Code.TOUCHED), status(1, Code.FAILED)], True),
        ([status(0, Code.FAILED), status(1, current="new")], True),
        ([status(0, Code.FAILED), status(1, current="old")], False),
    ],
)
def test_a_failed_load_touches_what_a_rank_has_loaded(statuses: list[RankStatus], is_touched: bool) -> None:
    running = update()
    running.note_failed_load(WorkersFailed("load", statuses), "new")
    assert running.is_touched is is_touched
    running = update(is_touched=True)
    running.note_failed_load(WorkersFailed("load", statuses), "new")
    assert running.is_touched, "once touched, always touched"


def test_it_counts_what_is_announced() -> None:
    running = update()
    running.note({"names": ["a"], "dtype_names": ["bfloat16"], "shapes": [[2, 3]]})
    running.note([{"dtype_names": ["float32"], "shapes": [[4]]}, {"packed": True}])
    assert (running.record.num_tensors, running.record.num_bytes) == (2, 28)


def test_a_trainer_that_means_another_update_is_refused() -> None:
    running = update()
    running.require(None, "finish")
    running.require("u1", "finish")
    with pytest.raises(Conflict, match="finish: update u2 is not running here; u1 is"):
        running.require("u2", "finish")
