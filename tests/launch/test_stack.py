import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tritonlive.launch import PortTakenError, Stack, StackConfig


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return StackConfig(model=str(tmp_path), cache_dir=tmp_path, tritonserver=Path(sys.executable))


@pytest.mark.parametrize("end", [Stack.stop, Stack.kill])
def test_a_stack_has_its_ports_to_itself_until_it_has_ended(config: StackConfig, end: object) -> None:
    assert callable(end)
    stack = Stack(config)
    same = replace(config, triton_grpc_port=stack.config.triton_grpc_port)
    with pytest.raises(PortTakenError, match="choose another with --triton-grpc-port"):
        Stack(same)
    end(stack)
    end(Stack(same))


def test_a_stack_that_is_started_again_has_the_same_ports(config: StackConfig) -> None:
    stack = Stack(config)
    stack.stop()
    other = Stack(replace(config, port=stack.config.port))
    with pytest.raises(PortTakenError, match=f"port {stack.config.port} "):
        stack.start()
    assert not stack.triton.members()
    other.stop()
