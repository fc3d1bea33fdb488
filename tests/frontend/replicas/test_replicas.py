"""openai_frontend/replicas/replicas.py: the choice of a request's replica, without sockets."""

from dataclasses import dataclass, field

import pytest

from openai_frontend.errors import EngineUnavailable
from openai_frontend.replicas.replicas import Replicas, version_to_serve


@dataclass(eq=False)
class Stub:
    url: str
    weight_version: str | None = "step-7"
    unavailable_reason: str | None = None
    num_running: int = 0
    is_slow: bool = False
    is_connected: bool = True
    heals: bool = False  # when it is asked
    num_asked: int = field(default=0, init=False)

    async def ask_health(self) -> None:
        self.num_asked += 1
        if self.unavailable_reason is not None and not self.heals:
            raise EngineUnavailable("no answer")
        self.unavailable_reason = None


def fleet(*members: Stub, committed: str | None = None) -> Replicas[Stub]:
    replicas = Replicas(members)
    replicas.committed = committed
    return replicas


def urls(members: list[Stub]) -> list[str]:
    return [member.url for member in members]


# ---- which weights serve --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "versions", "serves"),
    [
        (None, ["default"], "default"),
        (None, ["default", "default"], "default"),
        # No announcement yet, and one was restarted: weights that no push has reached are the oldest.
        (None, ["default", "exp-a"], "exp-a"),
        (None, ["step-6", "step-10", "default"], "step-10"),
        (None, ["exp-a", "exp-b"], None),
        # The latest commit counts, even of an older version: a rollback.
        ("step-6", ["step-7", "step-6"], "step-6"),
        ("exp-b", ["exp-a", "exp-b"], "exp-b"),
        # Nobody has it any more.
        ("step-7", ["default", "default"], "default"),
        ("step-7", ["step-6", "default"], "step-6"),
        ("step-7", ["exp-a", "exp-b"], None),
        ("step-7", [], None),
        (None, [None], None),
    ],
)
def test_the_version_that_serves(committed: str | None, versions: list[str | None], serves: str | None) -> None:
    assert version_to_serve(committed, versions) == serves
    assert version_to_serve(committed, versions[::-1]) == serves


# ---- excluded replicas ----------------------------------------------------------------------------------------------


def test_one_replica_serves_whatever_it_has() -> None:
    replicas = fleet(Stub("a", weight_version="default"), committed="step-7")
    assert urls(replicas.eligible()) == ["a"]
    assert replicas.weight_version == "default"


def test_one_that_was_restarted_is_left_out_until_it_has_caught_up() -> None:
    restarted = Stub("b", weight_version="default")
    replicas = fleet(Stub("a"), restarted, committed="step-7")
    assert urls(replicas.eligible()) == ["a"]
    assert replicas.why_left_out(restarted) == "serves 'default', not 'step-7'"
    restarted.weight_version = "step-7"
    assert urls(replicas.eligible()) == ["a", "b"]


def test_an_unavailable_one_is_left_out_and_its_weights_do_not_count() -> None:
    fenced = Stub("b", weight_version="step-8", unavailable_reason="weights: fenced (step-7 is live)")
    replicas = fleet(Stub("a"), fenced, committed="step-8")
    assert urls(replicas.eligible()) == ["a"]
    assert replicas.weight_version == "step-7"
    assert replicas.why_left_out(fenced) == "weights: fenced (step-7 is live)"


def test_weights_without_an_order_serve_nobody_and_the_message_names_all() -> None:
    replicas = fleet(Stub("a", weight_version="x"), Stub("b", weight_version="y"), Stub("c", unavailable_reason="lost"))
    assert replicas.eligible() == []
    assert replicas.weight_version is None
    message = str(replicas.unavailable())
    assert "a: serves 'x', and others" in message
    assert "b: serves 'y', and others" in message
    assert "c: lost" in message


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_the_least_loaded_is_picked() -> None:
    replicas = fleet(Stub("a", num_running=3), Stub("b", num_running=1), Stub("c", num_running=2))
    assert getattr(replicas.pick(), "url", None) == "b"


def test_equals_take_turns() -> None:
    replicas = fleet(Stub("a"), Stub("b"), Stub("c"))
    assert [getattr(replicas.pick(), "url", None) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_silent_one_is_picked_only_when_there_is_no_other() -> None:
    silent, busy = Stub("a", is_slow=True), Stub("b", num_running=100)
    replicas = fleet(silent, busy)
    assert replicas.pick() is busy
    busy.unavailable_reason = "lost"
    assert replicas.pick() is silent


def test_the_other_one() -> None:
    first, second = Stub("a"), Stub("b", num_running=5)
    replicas = fleet(first, second)
    assert replicas.pick(other_than=first) is second
    second.unavailable_reason = "lost"
    assert replicas.pick(other_than=first) is None


# ---- no replica may generate ----------------------------------------------------------------------------------------


async def test_nothing_is_asked_while_somebody_may() -> None:
    well, unwell = Stub("a"), Stub("b", unavailable_reason="fenced")
    await fleet(well, unwell).require()
    assert (well.num_asked, unwell.num_asked) == (0, 0)


async def test_a_replica_healed_a_moment_ago_is_found_so() -> None:
    healed = Stub("b", unavailable_reason="fenced", heals=True)
    replicas = fleet(Stub("a", unavailable_reason="lost", is_connected=False), healed)
    await replicas.require()
    assert replicas.pick() is healed


async def test_if_none_is_healed_every_one_is_named() -> None:
    gone = Stub("a", unavailable_reason="does not answer", is_connected=False)
    with pytest.raises(EngineUnavailable, match=r"not available: a: does not answer; b: fenced$") as caught:
        await fleet(gone, Stub("b", unavailable_reason="fenced")).require()
    assert caught.value.http_status == 503
    assert gone.num_asked == 0
