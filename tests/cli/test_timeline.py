"""tritonlive/cli/timeline.py: the table of the last updates."""

from io import StringIO

from rich.console import Console

from tritonlive.cli.timeline import MIN_WIDTH, SECONDS, timeline_table

UPDATE = {
    "kind": "push",
    "holder": "trainer-host:12345:0123abcd",
    "started_at": 1.8e9,
    "outcome": "committed",
    "reason": None,
    "weight_version": "step-1234",
    "num_bytes": 269_060_552,
    "num_tensors": 272,
    "in_flight": "keep",
    **dict.fromkeys(SECONDS, 123.456),
}


def answer(**changes: object) -> dict[str, object]:
    return {
        "weight_version": "step-1234",
        "state": "serving",
        "lease": None,
        "updates": [UPDATE | changes],
        "in_flight": {"step-1234": 2, "step-1233": 1},
    }


def shown_table(answer: dict[str, object]) -> str:
    out = StringIO()
    Console(file=out, width=MIN_WIDTH).print(timeline_table(answer))
    return out.getvalue()


def test_no_figure_is_cut_off() -> None:
    text = shown_table(answer())
    assert "…" not in text
    assert text.count("123.456") == len(SECONDS)
    for shown in ("step-1234", "committed", "269.1", "in flight", "trainer-host", "1 with step-1233"):
        assert shown in text


def test_a_version_is_not_markup() -> None:
    text = shown_table(answer(weight_version="[red]", holder="[bold]", reason="[dim]") | {"weight_version": "[blue]"})
    assert all(name in text for name in ("[red]", "[bold]", "committed: [dim]", "serving [blue]"))
