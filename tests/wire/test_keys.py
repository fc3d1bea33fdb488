"""tritonlive/wire/keys.py: lists of keys, and their comparison."""

import pytest

from tritonlive.wire.keys import matches, split_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (None, ()),
        ("", ()),
        (" , ,", ()),
        ("one", ("one",)),
        ("b,a", ("b", "a")),
        (" a , b,a", ("a", "b")),
        ("with space,x", ("with space", "x")),
    ],
)
def test_lists(text: str | None, keys: tuple[str, ...]) -> None:
    assert split_keys(text) == keys


@pytest.mark.parametrize(
    ("key", "is_accepted"),
    [("one", True), ("two", True), (None, False), ("", False), ("on", False), ("one ", False), ("one,two", False)],
)
def test_matches(key: str | None, *, is_accepted: bool) -> None:
    assert matches(key, ["one", "two"]) is is_accepted


def test_nothing_matches_where_there_are_no_keys() -> None:
    assert not matches("", [])


@pytest.mark.row(2)
def test_every_accepted_key_is_compared_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the comparison shows neither where keys differ, nor which one fits, nor their length."""
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return one == other

    monkeypatch.setattr("tritonlive.wire.keys.hmac.compare_digest", compare)
    assert matches("one", ["one", "a much longer key", "x"])
    assert compared == [32] * 3


def test_a_key_that_is_not_unicode_is_wrong() -> None:
    assert not matches("\ud800", ["one"])
