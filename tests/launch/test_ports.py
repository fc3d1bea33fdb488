import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import pytest

from tritonlive.launch import PortTakenError, StackConfig
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.port_lock import PortLock
from tritonlive.launch.ports import ReservedPorts, check_free, check_ports, pick_free, ports_of

NUM_PORTS = len(ports_of(StackConfig(model="")))
"""Of a stack without a Rust port."""


def listener() -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("port", "--port"),
        ("triton_http_port", "--triton-http-port"),
        ("triton_grpc_port", "--triton-grpc-port"),
        ("triton_metrics_port", "--triton-metrics-port"),
    ],
)
def test_a_taken_port_is_named_with_the_option_that_changes_it(field: str, option: str) -> None:
    with closing(listener()) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"port {port} .*{option}$"):
            check_ports(StackConfig(model="m", **{field: port}))


def test_a_port_just_given_up_is_free() -> None:
    with closing(listener()) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server closes first: its side lingers in TIME_WAIT
        client.close()
    check_free("127.0.0.1", port, what="test", option="--port")


def test_picked_ports_are_different_and_free() -> None:
    picked = pick_free("127.0.0.1", 8)
    assert len(set(picked)) == 8
    for port in picked:
        check_free("127.0.0.1", port, what="test", option="--port")


def test_a_picked_port_is_none_that_an_outgoing_connection_may_get() -> None:
    with closing(listener()) as server:
        outgoing = [socket.create_connection(server.getsockname()) for _ in range(50)]
        try:
            taken = {connection.getsockname()[1] for connection in outgoing}
        finally:
            for connection in outgoing:
                connection.close()
    assert max(pick_free("127.0.0.1", 50)) < min(taken)


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(listener()) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr("tritonlive.launch.ports.LISTENING", range(port, port + 1))
        with pytest.raises(LaunchError, match="no free port"):
            pick_free("127.0.0.1", 1)


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"cannot bind 192\.0\.2\.1"):
        pick_free("192.0.2.1", 1)


RESERVE = """
import sys
from tritonlive.launch import StackConfig
from tritonlive.launch.ports import ReservedPorts
ports = ReservedPorts(StackConfig(model="m", triton_grpc_port=int(sys.argv[1])))
print(*ports.numbers.values(), flush=True)
sys.stdin.read()
"""


def reserving(port: int = 0) -> subprocess.Popen[str]:
    """A process that reserves the ports of a stack, its gRPC port given, until its standard input ends."""
    command = [sys.executable, "-c", RESERVE, str(port)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Releasing(ReservedPorts):
    """Can be closed as a context manager."""

    close = ReservedPorts.release


@pytest.fixture
def port() -> int:
    return pick_free("127.0.0.1", 1)[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_stack_is_told_who_has_the_port_until_that_process_has_ended(
    port: int, number: signal.Signals
) -> None:
    config = StackConfig(model="m", triton_grpc_port=port)
    with reserving(port) as first:
        assert first.stdout is not None
        first.stdout.readline()
        said = (
            rf"^port {port} \(Triton gRPC\) is taken by tritonlive, process {first.pid} \(since \d\d:\d\d:\d\d\), "
            r"still starting; choose another with --triton-grpc-port$"
        )
        with pytest.raises(PortTakenError, match=said):
            ReservedPorts(config)
        first.send_signal(number)
        assert first.wait(10) == -number
    with closing(Releasing(config)) as ports:
        assert ports.numbers["triton_grpc_port"] == port


def test_stacks_that_start_at_once_get_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    start = pick_free("127.0.0.1", 1)[0]
    # So few that they would meet.
    monkeypatch.setattr("tritonlive.launch.ports.LISTENING", range(start, start + 60))
    config = StackConfig(model="m")
    with ThreadPoolExecutor(8) as pool:
        stacks = list(pool.map(lambda _: ReservedPorts(config), range(8)))
    numbers = [number for stack in stacks for number in stack.numbers.values()]
    assert len(numbers) == len(set(numbers)) == 8 * NUM_PORTS
    for stack in stacks:
        stack.release()


def test_processes_that_start_at_once_get_different_ports() -> None:
    children = [reserving() for _ in range(4)]
    numbers = []
    for child in children:
        assert child.stdout is not None
        numbers += child.stdout.readline().split()
    assert len(numbers) == len(set(numbers)) == 4 * NUM_PORTS
    for child in children:
        child.communicate(timeout=10)


def test_of_many_who_want_the_same_port_one_gets_it(port: int) -> None:
    config = StackConfig(model="m", port=port)

    def reserve(_: int) -> ReservedPorts | None:
        try:
            return ReservedPorts(config)
        except PortTakenError:
            return None

    with ThreadPoolExecutor(8) as pool:
        got = [ports for ports in pool.map(reserve, range(16)) if ports is not None]
    assert len(got) == 1
    got[0].release()


def test_a_reserved_port_is_not_picked(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr("tritonlive.launch.ports.LISTENING", range(port, port + 1))
    with closing(
        Releasing(
            StackConfig(
                model="m", port=port, triton_http_port=port + 1, triton_grpc_port=port + 2, triton_metrics_port=port + 3
            )
        )
    ):
        with pytest.raises(LaunchError, match="no free port"):
            pick_free("127.0.0.1", 1)
    assert pick_free("127.0.0.1", 1) == [port]


def test_a_free_port_is_none_of_those_asked_for(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr("tritonlive.launch.ports.LISTENING", range(port, port + 4))
    with closing(Releasing(StackConfig(model="m", triton_metrics_port=port + 2))) as ports:
        assert set(ports.numbers.values()) == set(range(port, port + 4))
        assert ports.numbers["triton_metrics_port"] == port + 2


def test_a_stack_that_serves_is_told_from_one_that_starts(port: int) -> None:
    lock = PortLock("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortTakenError, match="this process, serving;"):
        ReservedPorts(StackConfig(model="m", port=port))
    lock.release()


@pytest.mark.parametrize(
    ("first", "second", "is_taken"),
    [
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.2", "127.0.0.1", False),
    ],
)
def test_a_wildcard_takes_the_port_on_every_address(port: int, first: str, second: str, is_taken: bool) -> None:
    said = "taken by tritonlive, this process, still starting; choose another with --port"
    refused = pytest.raises(PortTakenError, match=said) if is_taken else nullcontext()
    with closing(Releasing(StackConfig(model="m", host=first, port=port, api_key="k"))), refused:
        ReservedPorts(StackConfig(model="m", host=second, port=port, api_key="k")).release()


def test_what_was_reserved_before_a_refusal_is_given_back(port: int) -> None:
    with closing(Releasing(StackConfig(model="m", triton_grpc_port=port))):
        other = pick_free("127.0.0.1", 1)[0]
        with pytest.raises(PortTakenError):
            ReservedPorts(StackConfig(model="m", port=other, triton_grpc_port=port))
        ReservedPorts(StackConfig(model="m", port=other)).release()


def test_a_host_that_has_no_address_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"cannot bind no\.such\.host\.invalid:7 \(front end, --port\)"):
        ReservedPorts(StackConfig(model="m", host="no.such.host.invalid", port=7))


def test_ports_are_reserved_again_under_the_same_numbers(port: int) -> None:
    ports = ReservedPorts(StackConfig(model="m"))
    numbers = dict(ports.numbers)
    ports.release()
    ports.reserve()
    assert ports.numbers == numbers
    with pytest.raises(PortTakenError, match="this process"):
        ReservedPorts(StackConfig(model="m", port=numbers["port"]))
    ports.release()
