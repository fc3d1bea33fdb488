"""The id identifies the live update. Another update of the same version is not it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tritonlive.backend.weights.served_versions import Version
from tritonlive.backend.weights.updates import Updates
from tritonlive.wire.outcomes import Outcome


@pytest.fixture
def updates() -> Any:
    nobody: Any = SimpleNamespace()
    return Updates(nobody, nobody, nobody, lambda _label: None)


@pytest.fixture
def commit(updates: Any) -> Callable[[str, str], None]:
    def run(update_id: str, label: str) -> None:
        record = updates.history.begin("push", "a trainer", update_id)
        updates.versions.commit(Version(label, update_id))
        updates.history.end(record, Outcome.COMMITTED, label)

    return run


def test_an_update_is_not_live_once_another_has_committed_by_its_name(updates: Any, commit: Any) -> None:
    commit("first", "same")
    assert updates.is_live("first")
    commit("second", "same")
    assert updates.is_live("second")
    assert not updates.is_live("first")


def test_no_update_is_live_after_the_engine_has_died(updates: Any, commit: Any) -> None:
    commit("first", "same")
    updates.versions.restart("default")
    assert not updates.is_live("first")
