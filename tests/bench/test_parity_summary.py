"""The counts of a parity run, as the documentation reads them."""

import json
from pathlib import Path

from bench.parity.compare import Difference, Justification, Verdict
from bench.parity.summary import failed_here, save, summarise

VERSION = Justification("routes/version", "*", "the version")
GRAMMARS = Justification("chat/*", "*", "the grammars")
GRAMMARS_TOO = Justification("completions/*", "*", "the grammars")


def verdict() -> Verdict:
    """Ten requests: one open difference, three with a reason in two requests, and one in a third."""
    return Verdict(
        10,
        [Difference("chat/open", "$.status", 200, 400)],
        [
            (Difference("chat/a", "$.status", 200, 500), GRAMMARS),
            (Difference("chat/a", "$.json.error", {}, None), GRAMMARS),
            (Difference("routes/version", "$.json.version", "1", "2"), VERSION),
            (Difference("completions/b", "$.status", 200, 500), GRAMMARS_TOO),
        ],
        [],
    )


def test_differences_are_counted_by_reason() -> None:
    summary = summarise(verdict(), 2, "tiny")
    assert (summary["shapes"], summary["equal"], summary["open"], summary["checks_failed"]) == (10, 6, 1, 2)
    assert summary["justified"] == [
        {"reason": "the grammars", "differences": 3, "shapes": ["chat/a", "completions/b"]},
        {"reason": "the version", "differences": 1, "shapes": ["routes/version"]},
    ]


def test_a_check_that_both_fail_is_not_counted() -> None:
    left = ["chat/a: is_person: 'x': no JSON", "chat/b: is_date: no 200 answer"]
    assert failed_here(left, ["chat/a: is_person: 'y': no JSON", "chat/a: says_paris: no", "chat/c: is_date: no"]) == 2


def test_the_file_has_no_names_of_machines_or_people(tmp_path: Path) -> None:
    save(summarise(verdict(), 0, "tiny"), tmp_path / "new" / "counts.json")
    written = json.loads((tmp_path / "new" / "counts.json").read_text())
    assert written["model"] == "tiny"
    assert str(Path.home()) not in (tmp_path / "new" / "counts.json").read_text()
