"""tritonlive/wire/versions.py: the order of weight versions, and the names of pushes."""

import pytest

from tritonlive.wire.versions import newest_numbered, next_step, next_version, staleness_reason

NEW_ENOUGH = [
    ("v7", "v7"),
    ("v7", "v6"),
    ("v10", "v9"),
    ("step-0012", "step-7"),
    ("7", "0"),
    ("", ""),
    ("any words", "any words"),
    ("v" + "9" * 5000, "v1"),
]
TOO_OLD = [
    ("v6", "v7", "older"),
    ("v9", "v10", "older"),
    ("v1", "v" + "9" * 5000, "older"),
    ("default", "v1", "cannot be compared"),
    ("v1", "default", "cannot be compared"),
    ("step-9", "v1", "cannot be compared"),
    ("v1.9", "v2.1", "cannot be compared"),
    ("v²", "v1", "cannot be compared"),
    ("a", "b", "cannot be compared"),
]


@pytest.mark.parametrize(("version", "minimum"), NEW_ENOUGH)
def test_versions_that_satisfy(version: str, minimum: str) -> None:
    assert staleness_reason(version, minimum) is None


@pytest.mark.parametrize(("version", "minimum", "message"), TOO_OLD)
def test_versions_that_do_not(version: str, minimum: str, message: str) -> None:
    reason = staleness_reason(version, minimum)
    assert reason is not None
    assert message in reason
    assert repr(version) in reason
    assert repr(minimum) in reason


def test_what_a_push_is_called() -> None:
    assert next_version([]) == next_version([None, "default", "v", "v1.5", "xv3"]) == "v1"
    assert next_version(["v9", "v10", "other"]) == "v11"
    assert newest_numbered(["v9", "v10", None, "step-99"]) == "v10"
    assert newest_numbered(["default", None]) is None
    assert (next_step("default"), next_step("step-9")) == ("step-0", "step-10")
