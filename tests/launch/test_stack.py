import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tritonlive.launch import PortTakenError, Stack, StackConfig
from tritonlive.launch.shared_memory import FOLDER


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


def test_the_sockets_of_vllm_are_in_a_folder_that_goes_with_the_stack(config: StackConfig) -> None:
    stack = Stack(config)
    stack.triton.command = stack.frontend.command = ["sleep", "300"]
    stack.start()
    first = Path(stack.triton.env["VLLM_RPC_BASE_PATH"])
    (first / "socket").touch()
    assert first.stat().st_mode & 0o777 == 0o700
    stack.triton.kill()
    stack.start_again(stack.triton)
    second = Path(stack.triton.env["VLLM_RPC_BASE_PATH"])
    assert (first.exists(), second.is_dir()) == (False, True)
    stack.kill()
    assert not second.exists()


def test_a_folder_for_sockets_that_the_user_chose_is_left_alone(config: StackConfig, tmp_path: Path) -> None:
    stack = Stack(replace(config, env={"VLLM_RPC_BASE_PATH": str(tmp_path)}))
    stack.triton.command = stack.frontend.command = ["sleep", "300"]
    stack.start()
    assert stack.triton.env["VLLM_RPC_BASE_PATH"] == str(tmp_path)
    stack.kill()
    assert tmp_path.is_dir()


LAUNCHER = """
import sys, time
from pathlib import Path
from tritonlive.launch import Stack, StackConfig
folder = Path(sys.argv[1])
stack = Stack(StackConfig(model=str(folder), cache_dir=folder, tritonserver=Path(sys.executable)))
stack.triton.command = stack.frontend.command = ["sleep", "300"]
stack.start()
print(stack.triton.pid, stack.frontend.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.row(30)
def test_a_killed_launchers_processes_end_and_the_next_start_removes_its_shared_memory(
    config: StackConfig, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in launcher.stdout.readline().split()]
        # After the kill, a start of any other test removes it.
        assert list(FOLDER.glob(f"tritonlive_{launcher.pid}_*"))
        launcher.kill()
    psutil.wait_procs(processes, timeout=10)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    stack = Stack(config)
    stack.triton.command = stack.frontend.command = ["sleep", "300"]
    stack.start()
    assert not list(FOLDER.glob(f"tritonlive_{launcher.pid}_*"))
    stack.kill()
