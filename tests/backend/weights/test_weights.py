"""The state machine of a replica's weights, over an engine whose ranks answer as the test sets them (engine.py)."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backend.engine import FakeEngine
from tritonlive.backend.tensors import RequestError, Unavailable
from tritonlive.backend.weights import trainer_session
from tritonlive.backend.weights.weights import Weights

TRL = {"host": "0.0.0.0", "port": 51216, "world_size": 2, "client_device_uuid": "1"}
INIT = {"holder": "trainer", "lease_s": 60}


def tensor(name: str = "a") -> dict[str, Any]:
    return {"names": [name], "dtype_names": ["bfloat16"], "shapes": [[2, 3]]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    return tmp_path


@pytest.fixture
async def make(checkpoint: Path) -> Callable[..., Awaitable[Any]]:
    """make(backend, ranks) → Weights over a FakeEngine that has started."""

    async def build(backend: str | None = "gloo", num_ranks: int = 2) -> Any:
        engine: Any = FakeEngine(backend, checkpoint, num_ranks)
        weights = Weights(engine, lambda _version: None)
        await engine.start()
        return weights

    return build


async def push(weights: Any, version: str | None, **options: Any) -> dict[str, Any]:
    if weights.lease.holder != "trainer":
        await weights.connect(INIT)
    await weights.start(**{name: options[name] for name in options.keys() & {"update_id", "in_flight"}})
    await weights.update(tensor())
    return await weights.finish(version)


def calls(weights: Any) -> list[str]:
    return weights.engine.llm.calls


# ---- a push ---------------------------------------------------------------------------------------------------------


async def test_a_staged_update_pauses_only_while_it_loads(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    assert calls(weights) == [
        *("connect", "start", "update", "prepare"),
        *("pause keep", "load", "reset_prefix_cache", "resume", "report"),
    ]
    record = weights.history.last
    assert (record.outcome, record.num_tensors, record.num_bytes) == ("committed", 1, 12)
    assert (weights.state, weights.engine.llm.version) == ("serving", "v1")


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
async def test_an_update_that_writes_into_the_model_pauses_before_it_starts(make: Any, mode: str) -> None:
    """One pause, in the trainer's mode. A second pause would let half a model generate ("wait")."""
    weights = await make("nccl")
    await push(weights, "v1", in_flight=mode)
    assert [call for call in calls(weights) if call.startswith("pause")] == [f"pause {mode}"]
    assert calls(weights).index(f"pause {mode}") < calls(weights).index("start")
    assert not weights.engine.llm.is_paused


async def test_caches_of_a_multimodal_model_are_reset_too(make: Any) -> None:
    weights = await make()
    weights.engine.llm.model_config.is_multimodal_model = True
    await push(weights, "v1")
    assert {"reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"} <= set(calls(weights))


async def test_an_update_that_all_ranks_hold_only_gets_a_name(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    held = weights.updates.versions.serving.update_id
    for rank in weights.engine.llm.ranks:
        rank.is_unchanged = True
    assert (await push(weights, "v2"))["is_changed"] is False
    assert calls(weights)[-3:] == ["adopt", "resume", "report"]
    assert weights.updates.versions.serving.update_id == held

    weights.engine.llm.ranks[1].is_unchanged = False  # one that does not hold it: then all load
    assert (await push(weights, "v3"))["is_changed"] is True


async def test_other_weights_never_go_by_the_same_name(make: Any) -> None:
    """vLLM's clients need not name a version."""
    weights = await make()
    assert (await push(weights, None))["weight_version"] == "v1"
    assert (await push(weights, None))["weight_version"] == "v2"


async def test_a_second_finish_answers_as_the_first(make: Any) -> None:
    weights = await make()
    first = await push(weights, "v1", update_id="u1")
    assert await weights.finish("v1") == first
    assert await weights.finish("v1", update_id="u1") == first
    with pytest.raises(RequestError, match="no update is running"):
        await weights.finish("v1", update_id="u2")


async def test_only_its_own_update_can_be_changed_by_a_trainer(make: Any) -> None:
    weights = await make()
    await weights.connect(INIT)
    await weights.start(update_id="u1")
    assert await weights.start(update_id="u1") == "u1"  # a retry
    for call in (weights.update(tensor(), "u2"), weights.prepare("u2"), weights.finish("v", update_id="u2")):
        with pytest.raises(RequestError, match="update u2 is not running here; u1 is"):
            await call
    assert (await weights.abort("late", "u2"))["outcome"] is None
    assert weights.state == "updating"


# ---- failures -------------------------------------------------------------------------------------------------------


async def test_a_rank_that_cannot_prepare_leaves_all_untouched(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    weights.engine.llm.ranks[1].fails["prepare"] = "rejected"
    with pytest.raises(RequestError, match="rank 1: prepare: meant to fail"):
        await push(weights, "v2")
    assert (weights.state, weights.engine.llm.version) == ("serving", "v1")
    assert not weights.engine.llm.is_paused
    assert not weights.lease.is_held


async def test_ranks_that_have_staged_different_tensors_commit_nothing(make: Any) -> None:
    weights = await make()
    weights.engine.llm.ranks[1].digest = "other"
    with pytest.raises(RequestError, match="the ranks have staged different tensors"):
        await push(weights, "v1")
    assert "load" not in calls(weights)
    assert weights.state == "serving"


@pytest.mark.parametrize("code", ["failed", "touched"])
async def test_one_rank_that_does_not_load_leaves_the_replica_dirty(make: Any, code: str) -> None:
    """Includes a replica that is untouched, because the other has the new version by then."""
    weights = await make()
    await push(weights, "v1")
    weights.engine.llm.ranks[1].fails["load"] = code
    with pytest.raises(RequestError, match="rank 1: load: meant to fail"):
        await push(weights, "v2")
    assert weights.state == "dirty"
    assert weights.engine.llm.is_paused
    assert weights.engine.llm.version == "v1"
    with pytest.raises(RequestError, match="weights: dirty"):
        weights.replica.check_can_generate()

    weights.engine.llm.ranks[1].fails.clear()
    await push(weights, "v3")
    assert (weights.state, weights.engine.llm.version, weights.engine.llm.is_paused) == ("serving", "v3", False)


async def test_a_dirty_replica_goes_back_to_what_it_served(make: Any) -> None:
    weights = await make()
    await push(weights, "v1", update_id="u1")
    weights.engine.llm.ranks[0].fails["load"] = "touched"
    with pytest.raises(RequestError, match="meant to fail"):
        await push(weights, "v2", update_id="u2")
    assert (await weights.rollback())["weight_version"] == "v1"
    assert [rank.current for rank in weights.engine.llm.ranks] == ["u1", "u1"]
    assert weights.state == "serving"


@pytest.mark.parametrize("step", ["update", "load"])
async def test_nccl_is_dirty_after_any_failure_until_a_whole_update(make: Any, step: str) -> None:
    weights = await make("nccl_trl_legacy")
    weights.engine.llm.ranks[0].fails[step] = "touched"
    await weights.connect(TRL)
    await weights.start()

    async def rest() -> None:
        await weights.update(tensor())
        await weights.finish("step-0")

    with pytest.raises(RequestError, match=f"{step}: meant to fail"):
        await rest()
    assert weights.state == "dirty"
    assert not weights.lease.is_held
    assert calls(weights)[-3:] == ["abort", "disconnect", "pause abort"]

    weights.engine.llm.ranks[0].fails.clear()
    await weights.connect(TRL)
    await weights.start()
    assert weights.state == "updating"
    await rest()
    assert (weights.state, weights.engine.llm.version) == ("serving", "step-0")


async def test_a_worker_call_that_raises_costs_the_engine_its_life(make: Any) -> None:
    """vLLM's executor would read the other ranks' answers as those of later calls."""
    weights = await make()
    await push(weights, "v1")
    weights.engine.llm.raises.add("prepare")
    with pytest.raises(RequestError, match="it is being started again"):
        await push(weights, "v2")
    assert weights.engine.num_kills == 1
    await weights.engine.start()
    assert weights.engine.llm.version == weights.updates.versions.serving.label == "default"
    assert weights.history.last.outcome == "failed"


@pytest.mark.parametrize("stage", ["load", "reset_caches"])
async def test_a_fault_of_ours_in_a_commit_leaves_the_replica_refusing(
    make: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    weights = await make()
    await push(weights, "v1")

    async def fail(*_args: Any, **_options: Any) -> None:
        raise KeyError("not foreseen")

    if stage == "load":
        monkeypatch.setattr(weights.updates, "_replace", fail)
    else:
        monkeypatch.setattr(weights._workers, "reset_caches", fail)
    with pytest.raises(KeyError):
        await push(weights, "v2")
    assert weights.state == ("serving" if stage == "load" else "dirty")
    assert weights.history.last.outcome == "failed"
    monkeypatch.undo()
    await push(weights, "v3")
    assert (weights.state, weights.engine.llm.is_paused) == ("serving", False)


async def test_a_commit_has_time_of_its_own(make: Any) -> None:
    """A trainer's deadline that is nearly over must not kill the engine in the middle of a load."""
    weights = await make()
    await weights.connect(INIT | {"timeout_s": 60.0})
    await weights.start()
    await weights.update(tensor())
    weights.updates.running.started_at -= 59.9
    seen: list[float] = []
    run = weights._workers.run

    async def note(operation: str, **arguments: Any) -> Any:
        seen.append(weights._workers.deadline - time.monotonic() if operation == "load" else 0.0)
        return await run(operation, **arguments)

    weights._workers.run = note
    await weights.finish("v1")
    assert max(seen) > 50


async def test_arguments_that_cannot_be_sent_do_not_cost_the_engine_its_life(make: Any) -> None:
    weights = await make()
    await weights.connect(INIT)
    await weights.start()
    with pytest.raises(RequestError, match="of update"):
        await weights.update({"names": ["a"], "dtype_names": ["no such"], "shapes": [[2**70]]})
    assert weights.engine.num_kills == 0


# ---- versions at hand -----------------------------------------------------------------------------------------------


async def test_back_and_forth(make: Any) -> None:
    weights = await make()
    await push(weights, "v1", update_id="u1")
    await push(weights, "v2", update_id="u2")
    assert [kept["weight_version"] for kept in weights.updates.kept] == ["v1", "v2"]
    assert (await weights.rollback())["weight_version"] == "v1"
    assert (await weights.rollback())["weight_version"] == "v2"
    assert (await weights.rollback(to="v1"))["weight_version"] == "v1"
    assert {rank.current for rank in weights.engine.llm.ranks} == {"u1"}


async def test_a_push_that_changes_nothing_takes_no_version_away(make: Any) -> None:
    weights = await make()
    await push(weights, "v1", update_id="u1")
    await push(weights, "v2", update_id="u2")
    for rank in weights.engine.llm.ranks:
        rank.is_unchanged = True
    await push(weights, "v2")
    assert [kept["weight_version"] for kept in weights.updates.kept] == ["v1", "v2"]
    await push(weights, "v3")
    assert [kept["weight_version"] for kept in weights.updates.kept] == ["v1", "v2", "v3"]
    assert [kept["update_id"] for kept in weights.updates.kept] == ["u1", "u2", "u2"]
    assert (await weights.rollback())["weight_version"] == "v2"
    assert (await weights.rollback(to="v1"))["weight_version"] == "v1"
    assert {rank.current for rank in weights.engine.llm.ranks} == {"u1"}


async def test_all_ranks_vote_before_one_of_them_goes_back(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    await push(weights, "v2")
    weights.engine.llm.ranks[1].kept.pop(0)
    with pytest.raises(RequestError, match="rank 1 has no 'v1'"):
        await weights.rollback()
    assert "restore" not in calls(weights)
    with pytest.raises(RequestError, match="'v9' is not kept here; there is v1, v2"):
        await weights.rollback(to="v9")


async def test_an_update_keeps_what_serves_not_what_came_before_it(make: Any) -> None:
    weights = await make()
    await push(weights, "v1", update_id="u1")
    await push(weights, "v2", update_id="u2")
    await weights.rollback()
    await push(weights, "v3", update_id="u3")
    assert weights.engine.llm.ranks[0].kept == ["u1", "u3"]
    assert (await weights.rollback())["weight_version"] == "v1"


async def test_the_checkpoint_is_gone_back_to_only_as_it_was_loaded(make: Any, checkpoint: Path) -> None:
    weights = await make()
    await push(weights, "v1")
    for rank in weights.engine.llm.ranks:
        rank.is_checkpoint_loadable = False
    with pytest.raises(RequestError, match="has no 'default'"):
        await weights.rollback()
    assert (await weights.reload())["weight_version"] == "default"  # the same files still: they may be read again

    (checkpoint / "model.safetensors").write_bytes(b"22")
    with pytest.raises(RequestError, match="files have changed"):
        await weights.reload()
    assert (await weights.reload("mine"))["weight_version"] == "mine"


async def test_an_engine_that_starts_from_other_files_does_not_call_them_default(make: Any, checkpoint: Path) -> None:
    weights = await make()
    weights.engine.kill()
    await weights.engine.start()
    assert weights.engine.llm.version == "default"
    (checkpoint / "model.safetensors").write_bytes(b"22")
    weights.engine.kill()
    await weights.engine.start()
    assert weights.engine.llm.version.startswith("default-")
    assert weights.updates.versions.serving.label == weights.engine.llm.version


# ---- fleets ---------------------------------------------------------------------------------------------------------


async def test_a_fence_works_while_updating(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    await weights.connect(INIT)
    await weights.start(update_id="u2")
    answer = await weights.fence("v2 is live elsewhere", "u2")
    assert (answer["state"], answer["outcome"], answer["is_live"]) == ("fenced", "aborted", False)
    with pytest.raises(RequestError, match="no update is running"):
        await weights.finish("v2", update_id="u2")
    await push(weights, "v3")
    assert weights.state == "serving"


async def test_a_replica_that_did_commit_is_not_fenced(make: Any) -> None:
    weights = await make()
    await push(weights, "v2", update_id="u2")
    assert (await weights.fence("lost its answer", "u2"))["is_live"]
    assert (await weights.abort("lost its answer", "u2"))["result"]["weight_version"] == "v2"
    assert weights.state == "serving"
    weights.engine.kill()  # with the checkpoint it is no longer live
    assert not (await weights.fence("lost its answer", "u2"))["is_live"]
    assert weights.state == "fenced"


async def test_a_fence_that_comes_late_does_not_hit_the_next_version(make: Any) -> None:
    weights = await make()
    await push(weights, "v1", update_id="u1")
    await push(weights, "v2", update_id="u2")
    await weights.fence("u1 is not live at some replica", "u1")
    assert weights.state == "serving"


async def test_a_rollback_says_what_became_of_it_by_its_id(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    await push(weights, "v2")
    await weights.rollback(update_id="r1")
    assert (await weights.abort("lost", "r1"))["is_live"]
    assert (await weights.abort("lost", "r2"))["outcome"] is None


async def test_a_commit_that_comes_after_an_abort_changes_nothing(make: Any) -> None:
    weights = await make()
    await weights.connect(INIT)
    await weights.start(update_id="u1")
    await weights.update(tensor(), "u1")
    assert (await weights.abort("the trainer's deadline has passed", "u1"))["outcome"] == "aborted"
    with pytest.raises(RequestError, match="no update is running"):
        await weights.finish("v1", update_id="u1")
    assert weights.engine.llm.version == "default"


async def test_a_lease_can_be_taken_before_the_workers_are_called(make: Any) -> None:
    weights = await make()
    await weights.reserve(INIT)
    assert "connect" not in calls(weights)
    with pytest.raises(RequestError, match="trainer trainer is connected"):
        await weights.reserve({"holder": "another"})
    await weights.connect(INIT)
    assert calls(weights) == ["connect"]


async def test_a_trainer_that_begins_anew_has_given_up_what_it_began(make: Any) -> None:
    """The trainer's abort was lost. It need not wait until its own lease expires."""
    weights = await make()
    await weights.connect(INIT)
    await weights.start(update_id="u1")
    await weights.reserve(INIT)
    assert (await weights.abort("asks", "u1"))["outcome"] == "aborted"
    assert weights.lease.holder == "trainer"
    await push(weights, "v1")
    assert weights.state == "serving"


# ---- generation -----------------------------------------------------------------------------------------------------


async def test_nothing_lets_a_half_replaced_model_generate(make: Any) -> None:
    weights = await make("nccl")
    await weights.connect(INIT)
    await weights.start()
    with pytest.raises(RequestError, match="not while weights are being replaced"):
        await weights.resume()
    for call in (weights.sleep(1, "abort"), weights.wake_up(None), weights.reset(), weights.set_version("x")):
        with pytest.raises(RequestError, match="not while updating"):
            await call
    for call in (weights.rollback(), weights.reload()):
        with pytest.raises(RequestError, match="not while updating"):
            await call
    assert weights.engine.llm.is_paused
    await weights.pause("wait", clear_cache=True)  # said now, it holds from the update's end on
    assert calls(weights).count("pause wait") == 0
    await weights.update(tensor())
    await weights.finish("v1")
    assert weights.engine.llm.is_paused
    await weights.resume()
    assert not weights.engine.llm.is_paused


async def test_a_staged_update_does_not_mind_a_pause(make: Any) -> None:
    weights = await make()
    await weights.connect(INIT)
    await weights.start()
    await weights.pause("keep", clear_cache=False)
    await weights.resume()
    assert not weights.engine.llm.is_paused


async def test_zeroed_weights_generate_nothing(make: Any) -> None:
    weights = await make()
    await push(weights, "v1")
    await weights.reset()
    assert calls(weights)[-2:] == ["pause abort", "reset"]
    assert weights.state == "dirty"
    assert (await weights.rollback())["weight_version"] == "v1"


@pytest.mark.parametrize("level", [1, 2])
async def test_sleep_makes_weights_unknown(make: Any, level: int) -> None:
    weights = await make()
    await push(weights, "v1")
    await weights.sleep(level, "abort")
    assert weights.engine.llm.ranks[0].current is None
    await weights.wake_up(None)
    assert weights.state == ("serving" if level == 1 else "dirty")
    assert weights.engine.llm.is_paused == (level == 2)


# ---- trainers -------------------------------------------------------------------------------------------------------


async def test_trainers_that_the_workers_listen_to_are_told_apart_by_their_gpu(make: Any) -> None:
    weights = await make("nccl_trl_legacy")
    await weights.connect(TRL)
    await weights.connect(TRL)
    with pytest.raises(RequestError, match="trainer GPU 1 is connected"):
        await weights.connect(TRL | {"client_device_uuid": "2"})


@pytest.mark.parametrize("is_gone", [True, False], ids=["trainer gone", "trainer lives"])
async def test_workers_that_a_dead_trainer_left_in_a_collective(
    make: Any, monkeypatch: pytest.MonkeyPatch, *, is_gone: bool
) -> None:
    """Only the engine's end releases the workers. While the trainer lives, the update waits for them."""
    monkeypatch.setattr(trainer_session, "STUCK_S", 0.1)
    weights = await make("nccl")
    engine = weights.engine
    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        rendezvous.settimeout(0)
        address, port = rendezvous.getsockname()
        init_info = {"master_address": address, "master_port": port, "holder": "a", "timeout_s": 60}
        await weights.connect(init_info)
        watcher, _ = await asyncio.get_running_loop().sock_accept(rendezvous)
    with watcher:
        await weights.start()
        engine.llm.hangs.add("update")
        update = asyncio.create_task(weights.update(tensor()))
        await asyncio.sleep(0.5)
        assert not update.done()
        if is_gone:
            watcher.close()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(update, 10)
            assert (weights.state, weights.lease.is_held) == ("serving", False)
            assert weights.history.last.outcome == "failed"
        else:
            await asyncio.sleep(0.5)
            assert not update.done()
            update.cancel()
    assert (engine.num_kills > 0) is is_gone
