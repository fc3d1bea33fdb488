"""Ports: is one free, and find one that is."""

import errno
import random
import socket
from contextlib import suppress

from launch.config import StackConfig
from launch.errors import LaunchError, PortTakenError

# Below those that Linux takes for outgoing connections (net.ipv4.ip_local_port_range begins at 32768).
LISTENING = range(10_000, 32_768)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def check_free(host: str, port: int, *, what: str, option: str) -> None:
    """Raise PortTakenError naming the port and the option that changes it, if it cannot be bound on `host`."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        # As the servers do: a connection left in TIME_WAIT by an earlier run does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(f"port {port} ({what}) is already in use; choose another with {option}") from error
            raise LaunchError(f"cannot bind {host}:{port} ({what}, {option}): {error.strerror}") from error


def check_ports(config: StackConfig) -> None:
    """Raise PortTakenError for the first port of the stack that somebody uses; 0 is never taken."""
    for host, port, what, option in (
        (config.host, config.port, "front end", "--port"),
        (config.triton_host, config.triton_http_port, "Triton HTTP", "--triton-http-port"),
        (config.triton_host, config.triton_grpc_port, "Triton gRPC", "--triton-grpc-port"),
        (config.triton_host, config.triton_metrics_port, "Triton metrics", "--triton-metrics-port"),
    ):
        check_free(host, port, what=what, option=option)


def pick_free(host: str, count: int) -> list[int]:
    """`count` different ports that nobody is using now; raises LaunchError if there are none.

    Whoever gets them binds them only when its engine is up, so they are not of those that the kernel gives to outgoing
    connections meanwhile.
    """
    picked: list[int] = []
    # Not of the process's own random numbers: programs with the same seed would pick the same ports.
    for port in random.SystemRandom().sample(LISTENING, len(LISTENING)):
        with suppress(PortTakenError):
            check_free(host, port, what="a free port", option="--host")
            picked.append(port)
        if len(picked) == count:
            return picked
    raise LaunchError(f"no free port on {host} from {LISTENING.start} to {LISTENING.stop - 1}")
