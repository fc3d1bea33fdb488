"""Which update is live is asked by its id: another one by the same name is not it."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def updates(load: Callable[[str], ModuleType]) -> Any:
    nobody = SimpleNamespace()
    return load("weights.updates").Updates(nobody, nobody, nobody, lambda _label: None)


@pytest.fixture
def commit(updates: Any, load: Callable[[str], ModuleType]) -> Callable[[str, str], None]:
    def run(update_id: str, label: str) -> None:
        record = updates.history.begin("push", "a trainer", update_id)
        updates.versions.commit(load("weights.served_versions").Version(label, update_id))
        updates.history.end(record, "committed", label)

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
