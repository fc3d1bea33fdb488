import socket
from contextlib import closing

import pytest

from launch import PortTakenError, StackConfig
from launch.errors import LaunchError
from launch.ports import check_free, check_ports, pick_free


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
        monkeypatch.setattr("launch.ports.LISTENING", range(port, port + 1))
        with pytest.raises(LaunchError, match="no free port"):
            pick_free("127.0.0.1", 1)


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"cannot bind 192\.0\.2\.1"):
        pick_free("192.0.2.1", 1)
