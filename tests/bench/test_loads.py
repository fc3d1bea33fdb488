"""Every system gets the same work."""

from pathlib import Path
from typing import Any

import pytest

from bench.loads import Chat, ChatBatch, Completions, HttpLoad, OfflineSide, Poisson, Teacher
from bench.systems import Settings, Systems

LOAD = Chat(stream=True, concurrency=4, num_requests=6, max_tokens=5)
SIZE: dict[str, Any] = {"concurrency": 2, "num_requests": 3, "max_tokens": 5}


def test_the_same_seed_gives_the_same_requests_and_another_gives_others():
    assert LOAD.job("http://a", "m", seed=1).bodies == LOAD.job("http://b", "m", seed=1).bodies
    assert LOAD.job("http://a", "m", seed=1).bodies != LOAD.job("http://a", "m", seed=2).bodies


def test_no_prompt_comes_twice():
    bodies = LOAD.job("http://a", "m", seed=1).bodies
    assert len({str(body["messages"]) for body in bodies}) == 6


def test_another_load_has_other_prompts():
    one, other = Completions(**SIZE), Completions(kind="long", **SIZE)
    assert one.job("", "m", seed=1).bodies[0]["prompt"] != other.job("", "m", seed=1).bodies[0]["prompt"]


def test_the_work_is_fixed():
    for body in LOAD.job("http://a", "m", seed=1).bodies:
        assert body["ignore_eos"] is True
        assert body["max_tokens"] == 5
        assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("load", "name", "path"),
    [
        (Completions(**SIZE), "completions/2", "/v1/completions"),
        (Completions(**SIZE, stream=True), "completions-stream/2", "/v1/completions"),
        (Completions(**SIZE, kind="long"), "long/2", "/v1/completions"),
        (Chat(**SIZE), "chat/2", "/v1/chat/completions"),
        (ChatBatch(**SIZE), "chats/2", "/v1/chat/completions"),
        (Teacher(**SIZE), "teacher/top100", "/v1/completions"),
        (Poisson(**SIZE, rate=4), "poisson/4", "/v1/completions"),
    ],
)
def test_a_load_has_a_name_and_a_route(load: HttpLoad, name: str, path: str):
    assert load.name == name
    assert load.job("http://a", "m", seed=0).path == path


def test_a_teacher_scores_all_sequences_in_one_request():
    (body, *_) = Teacher(**SIZE, prompt_words=512).job("", "m", seed=0).bodies
    assert body["prompt_logprobs"] == 100
    assert [len(text.split()) for text in body["prompt"]] == [512] * 8


def test_open_loop_requests_have_their_times_and_the_rate_is_kept():
    load = Poisson(rate=10, concurrency=1, num_requests=2000, max_tokens=5, stream=True)
    arrivals = load.job("", "m", seed=0).arrivals_s
    assert arrivals is not None
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(200, rel=0.1)
    assert LOAD.job("", "m", seed=0).arrivals_s is None


class Offline:
    """Records its calls."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def chat(self, conversations: list[Any], max_tokens: int) -> dict[str, float]:
        self.asked.append((conversations, max_tokens))
        return {"seconds": 1.0}


def test_the_offline_engine_gets_the_same_conversations_in_one_call():
    load = ChatBatch(**SIZE)
    offline: Any = Offline()
    side = OfflineSide(offline, load)
    assert side.run(seed=3) == {"seconds": 1.0}
    assert offline.asked == [([body["messages"] for body in load.job("http://a", "m", seed=3).bodies], 5)]


def test_both_sides_are_the_servers_of_the_comparison(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Systems, "server", lambda self, label: label)
    systems = Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None)
    assert [side.name for side in LOAD.sides(systems)] == ["tritonlive", "vllm"]
