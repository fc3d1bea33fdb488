"""The order of weight versions: tritonlive/backend/weights/versions.py, and the front end's, which must be the same."""

from collections.abc import Callable
from types import ModuleType

import pytest

from openai_frontend.versions import staleness_reason

Load = Callable[[str], ModuleType]
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
def test_versions_that_satisfy(load: Load, version: str, minimum: str) -> None:
    assert staleness_reason(version, minimum) is None
    load("weights.versions").check_minimum(version, minimum)


@pytest.mark.parametrize(("version", "minimum", "message"), TOO_OLD)
def test_versions_that_do_not(load: Load, version: str, minimum: str, message: str) -> None:
    reason = staleness_reason(version, minimum)
    assert reason is not None
    assert message in reason
    with pytest.raises(load("tensors").Conflict) as refusal:
        load("weights.versions").check_minimum(version, minimum)
    assert str(refusal.value) == f"min_weight_version: {reason}", "the model and the front end say the same"
