"""A helper process answers although its libraries print, and its death is reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.child import Child, ChildError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child("tests.bench.echo", ["a"], {"PYTHONPATH": str(ROOT)}, tmp_path / "echo.log") as child:
        yield child


def test_a_question_is_answered(child: Child):
    assert child.ask({"x": 1}) == {"x": 1, "arguments": ["a"]}
    child.send({"x": 2})
    assert child.receive()["x"] == 2


def test_it_ends_when_there_are_no_more_questions(tmp_path: Path):
    with Child("tests.bench.echo", [], {"PYTHONPATH": str(ROOT)}, tmp_path / "echo.log") as child:
        assert child.ask({}) == {"arguments": []}
        (process,) = child.processes()
    assert not process.is_running()


def test_its_death_is_an_error_with_its_last_words(child: Child):
    with pytest.raises(ChildError, match=r"status 3(.|\n)*last words"):
        child.ask({"die": True})
