"""A stack without Triton's HTTP port, which hostile requests can crash (docs/security.md)."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sync import Rollouts
from tests import answers
from tritonlive.launch import Stack, StackConfig


@pytest.fixture(scope="module")
def closed_stack(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = replace(stack_config, triton_http=False, log_dir=tmp_path_factory.mktemp("no-http-logs"))
    with Stack(config) as stack:
        stack.wait_ready(240)
        yield stack


@pytest.mark.row(38)
def test_everything_works_without_tritons_http_port(closed_stack: Stack) -> None:
    listening = {
        each.laddr.port
        for process in closed_stack.triton.members()
        for each in process.net_connections("tcp")
        if each.status == "LISTEN"
    }
    config = closed_stack.config
    assert {config.triton_grpc_port, config.triton_metrics_port} <= listening
    assert config.triton_http_port == 0, "none was reserved"
    assert not closed_stack.triton.log_contains("Started HTTPService")
    assert answers.complete(closed_stack, 60)[1] == "default"
    with Rollouts(f"grpc://{closed_stack.grpc_url}", api_key=closed_stack.api_key, timeout=60) as rollouts:
        assert rollouts.generate([[1, 2]], max_tokens=1).token_ids.size == 1
