"""Every system gets the same work."""

from bench.loads import Load, plan

LOAD = Load("chat", stream=True, concurrency=4, num_requests=6, max_tokens=5)


def test_the_same_seed_gives_the_same_requests_and_another_gives_others() -> None:
    assert LOAD.job("http://a", "m", seed=1).bodies == LOAD.job("http://b", "m", seed=1).bodies
    assert LOAD.job("http://a", "m", seed=1).bodies != LOAD.job("http://a", "m", seed=2).bodies


def test_no_prompt_comes_twice() -> None:
    bodies = LOAD.job("http://a", "m", seed=1).bodies
    assert len({str(body["messages"]) for body in bodies}) == 6


def test_the_work_is_fixed() -> None:
    for body in LOAD.job("http://a", "m", seed=1).bodies:
        assert body["ignore_eos"] is True
        assert body["max_tokens"] == 5
        assert body["stream_options"] == {"include_usage": True}


def test_a_plan_fills_its_slots_and_its_targets_are_of_its_loads() -> None:
    for model in ("smollm2", "tiny"):
        for quick in (False, True):
            planned = plan(model, quick=quick)
            assert all(load.num_requests >= load.concurrency for load in planned.loads)
            assert planned.targets.keys() <= {load.name for load in planned.loads}


def test_non_streaming_completions_have_the_promised_targets() -> None:
    assert plan("smollm2", quick=False).targets == {
        "completions/1": 0.95,
        "completions/16": 0.95,
        "completions/64": 0.95,
    }
