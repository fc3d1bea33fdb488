"""Every promised figure has a row with its target."""

import pytest

from bench.goals import Goal
from bench.loads import HttpLoad
from bench.plan import plan


def targets(model: str, *, quick: bool = False) -> dict[str, tuple[str, float]]:
    """Which way is better and the target, by the row's name."""
    goals = {f"{load.name} {goal.label}".strip(): goal for load in plan(model, quick=quick) for goal in load.goals}
    return {name: (goal.better, goal.target) for name, goal in goals.items() if goal.target is not None}


def test_a_real_model_is_on_a_par_and_its_trainer_is_served():
    apis = [f"{api}{stream}/{c}" for api in ("completions", "chat") for stream in ("", "-stream") for c in (1, 16, 64)]
    first_tokens = {f"{api}-stream/1 TTFT": ("lower", 2.0) for api in ("completions", "chat")}
    assert targets("smollm2") == dict.fromkeys(apis, ("higher", 0.99)) | first_tokens | {
        "teacher/top100": ("higher", 1.0),
        "teacher/top100 binary": ("higher", 4.0),
        "chats/64": ("lower", 1.05),
        "push/total": ("lower", 1.3),
        "push/pause": ("lower", 1.1),
        "push/fleet": ("lower", 1.3),
        "start/first-token": ("lower", 1.15),
    }


def test_where_serving_is_all_the_work_it_is_no_slower():
    streams = [f"{api}-stream/{concurrency}" for api in ("completions", "chat") for concurrency in (16, 64, 128)]
    plain = [f"completions/{concurrency}" for concurrency in (16, 64, 128)]
    assert targets("tiny") == {
        "hop/128": ("higher", 50_000),
        **dict.fromkeys([*plain, *streams], ("higher", 1.0)),
        **{f"{name} gap p99": ("lower", 1.1) for name in streams},
        **{f"{api}-stream/1 TTFT": ("lower", 2.0) for api in ("completions", "chat")},
        "rollouts/8 binary": ("higher", 1.5),
        "teacher/top100 binary": ("higher", 4.0),
    }


def test_where_the_model_is_the_work_rollouts_are_reported_only():
    (rollouts,) = [load for load in plan("smollm2", quick=False) if load.name == "rollouts/8 binary"]
    assert [goal.target for goal in rollouts.goals] == [None]


def test_arrays_are_in_a_quick_run_and_starts_are_not():
    names = [load.name for model in ("smollm2", "tiny") for load in plan(model, quick=True)]
    assert {"rollouts/8 binary", "teacher/top100 binary"} < set(names)
    assert "start/first-token" not in names


@pytest.mark.parametrize("model", ["smollm2", "tiny", "a/directory"])
def test_a_quick_run_is_a_part_of_the_whole(model):
    whole, quick = plan(model, quick=False), plan(model, quick=True)
    assert len({load.name for load in whole}) == len(whole)
    assert {load.name for load in quick} < {load.name for load in whole}


@pytest.mark.parametrize("model", ["smollm2", "tiny"])
def test_a_load_fills_its_slots_and_measures_what_its_goals_are_about(model):
    for load in plan(model, quick=False):
        assert all(isinstance(goal, Goal) for goal in load.goals)
        if isinstance(load, HttpLoad):
            assert load.num_requests >= load.concurrency
            assert load.stream or not any("gap" in goal.figure or "ttft" in goal.figure for goal in load.goals)
