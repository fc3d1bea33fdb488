"""openai_frontend/server.py: its start."""

import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from openai_frontend.server import MAX_OPEN_FILES, allow_connections, triton_urls


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


def test_replicas_are_named_once_and_an_empty_name_is_the_default_port() -> None:
    assert triton_urls(["a:1,grpc://b:2", " a:1"]) == ["a:1", "b:2"]
    assert triton_urls([""]) == triton_urls([]) == ["127.0.0.1:8001"]


def test_the_process_that_only_watches_workers_does_not_import_vllm() -> None:
    code = "import sys, openai_frontend.server; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
