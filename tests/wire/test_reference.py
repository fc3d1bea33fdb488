"""tritonlive/wire/reference.py: the page of control operations."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from msgspec import Meta

from tritonlive.wire.operations import OPERATIONS
from tritonlive.wire.reference import HEADER, operations_markdown, type_name
from tritonlive.wire.states import State


def rows() -> dict[str, str]:
    lines = [line for line in operations_markdown().splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def test_every_operation_has_a_row_and_a_paragraph() -> None:
    page = operations_markdown()
    assert set(rows()) == set(OPERATIONS)
    for name, operation in OPERATIONS.items():
        assert f"**`{name}`** {operation.documentation.split()[0]}" in page


def test_a_row() -> None:
    assert rows()["abort_weight_update"] == (
        '| `abort_weight_update` | `reason: string = "asked for"`<br>`update_id: string \\| null = null`'
        "<br>`force: boolean = false` | yes | yes, unless `force` | `POST /abort_weight_update` | `one` |"
    )
    assert rows()["is_paused"] == "| `is_paused` | - | yes | no | `GET /is_paused` (vLLM) | `all` |"
    assert rows()["health"] == "| `health` | - | no | no | - | `own` |"
    assert "<br>payload (bytes) |" in rows()["stage_adapter"]


def test_answers() -> None:
    page = operations_markdown()
    assert "Answers `healthy: boolean`." in page
    assert "Answers an empty object." in page
    assert "not a finite number." in page


def test_the_tables_are_well_formed() -> None:
    columns = HEADER[0].count("|")
    for line in rows().values():
        assert line.replace("\\|", "").count("|") == columns


class Some(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (str, "string"),
        (State, "string"),
        (int | None, "integer | null"),
        (Annotated[str, Meta(max_length=3)], "string"),
        (NotRequired[float], "number"),
        (Literal["a", "b"], '"a" | "b"'),
        (list[Some], "list of object"),
        (dict[str, Any], "object"),
        (list[list[bool]], "list of list of boolean"),
    ],
)
def test_types_as_json_has_them(hint: Any, name: str) -> None:
    assert type_name(hint) == name
