"""openai_frontend/server.py: its start."""

import resource
from collections.abc import Iterator

import pytest

from openai_frontend.server import MAX_OPEN_FILES, allow_connections


@pytest.fixture
def hard() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.usefixtures("_restored")
def test_a_shells_limit_of_open_files_is_raised(hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    allow_connections()
    soft, hard_after = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (soft, hard_after) == (MAX_OPEN_FILES if hard < 0 else min(hard, MAX_OPEN_FILES), hard)


@pytest.fixture
def _restored() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
