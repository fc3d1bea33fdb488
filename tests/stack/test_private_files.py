"""What a stack leaves on disk and in memory, as another user of the machine sees it."""

import os
import stat
import subprocess
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from tritonlive.launch import Stack

NOBODY = 65534
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def as_nobody(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False)


def regions(stack: Stack) -> list[Path]:
    """The shared memory through which Triton hands requests to its models."""
    paths = Path("/dev/shm").glob(f"tritonlive_*_{stack.config.triton_grpc_port}_*")
    return [path for path in paths if path.is_file() and path.stat().st_size]


def own_paths(stack: Stack) -> set[Path]:
    """Files, folders and sockets that the stack's processes hold open or have mapped, and made themselves."""
    started = min(process.create_time() for process in stack.triton.members())
    found: set[Path] = set()
    for process in (*stack.triton.members(), *stack.frontend.members()):
        found |= {Path(each.path) for each in process.memory_maps(grouped=True)}
        found |= {Path(each.path) for each in process.open_files()}
        found |= {Path(each.laddr) for each in process.net_connections("unix") if str(each.laddr).startswith("/")}
    found.discard(Path("/var/log/nv-hostengine.log"))  # NVIDIA's DCGM inside Triton writes it where root runs Triton
    # A copy of a public package, which the first stack on a machine makes while it starts.
    backends = stack.config.cache_dir / "backends"
    found = {path for path in found if not path.is_relative_to(backends)}
    return {path for path in found if path.exists() and path.stat().st_ctime >= started and not _is_device(path)}


def _is_device(path: Path) -> bool:
    return (path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")) or path.is_relative_to("/proc")


@pytest.mark.row(37)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_another_user_reads_no_request(stack: Stack) -> None:
    assert len(regions(stack)) == len(list(stack.config.model_repository.iterdir()))
    readable = as_nobody("cat", "/etc/passwd")
    assert readable.returncode == 0, "cat itself works as nobody"
    for path in (*regions(stack), stack.triton_log, stack.frontend_log):
        answer = as_nobody("cat", str(path))
        assert (answer.returncode, answer.stdout) == (1, b"")


@pytest.mark.row(37)
def test_nothing_of_ours_is_for_other_users(stack: Stack) -> None:
    paths = own_paths(stack)
    assert set(regions(stack)) <= paths
    assert any(stat.S_ISSOCK(path.stat().st_mode) for path in paths), "vLLM's sockets are among them"
    assert {str(path): oct(path.stat().st_mode) for path in paths if path.stat().st_mode & OTHERS} == {}


@pytest.mark.row(37)
def test_ports_are_on_this_machine_only(stack: Stack) -> None:
    listening = {
        each.laddr.ip.removeprefix("::ffff:")  # an IPv4 address of a socket for IPv6
        for process in (*stack.triton.members(), *stack.frontend.members())
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert all(ip_address(address).is_loopback for address in listening), listening
