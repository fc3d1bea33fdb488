"""The ports of a stack: reserve the given ones, and pick free ones for the others."""

import errno
import os
import random
import socket
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass

from tritonlive.wire.keys import split_keys

from .config import StackConfig
from .errors import LaunchError, PortTakenError
from .exposure import check_exposure
from .name_lock import NameHeldError
from .port_lock import PortLock

# Below those that Linux takes for outgoing connections (net.ipv4.ip_local_port_range begins at 32768).
LISTENING = range(10_000, 32_768)


@dataclass(frozen=True)
class PortField:
    """A port in StackConfig: its field, the field of its address, and its name in messages."""

    name: str
    host_field: str
    what: str

    @property
    def option(self) -> str:
        """The command line option that sets it."""
        return option_of(self.name)


FIELDS = (
    PortField("port", "host", "front end"),
    PortField("rust_port", "host", "Rust front end"),
    PortField("triton_http_port", "triton_http_host", "Triton HTTP"),
    PortField("triton_grpc_port", "triton_host", "Triton gRPC"),
    PortField("triton_metrics_port", "triton_host", "Triton metrics"),
)


def option_of(field: str) -> str:
    """The command line option that sets a field of StackConfig."""
    return "--" + field.replace("_", "-")


def ports_of(config: StackConfig) -> tuple[PortField, ...]:
    """The ports that the stack opens."""
    absent = {
        *(() if config.triton_http else ("triton_http_port",)),
        *(() if config.rust_port is not None else ("rust_port",)),
    }
    return tuple(field for field in FIELDS if field.name not in absent)


class ReservedPorts:
    """The ports of one stack, reserved from their check until `release`, so that no two stacks start with the same."""

    def __init__(self, config: StackConfig) -> None:
        """Reserve every port of `config`, a free one where it is 0.

        Raises as `reserve` does, and LaunchError if other machines could generate without a key.
        """
        check_addresses(config, has_key=bool(split_keys(config.api_key)))
        self._fields = ports_of(config)
        self._hosts = {field.name: getattr(config, field.host_field) for field in self._fields}
        self._locks: list[PortLock] = []
        self.numbers: dict[str, int] = {field.name: getattr(config, field.name) for field in self._fields}
        self.reserve()

    def reserve(self) -> None:
        """Reserve them again after `release`; does nothing while they are reserved.

        Raises PortTakenError for the first one that another stack has reserved or that is in use.
        """
        if self._locks:
            return
        try:
            # Given ports come first, so that a picked one differs from them.
            for field in sorted(self._fields, key=lambda field: self.numbers[field.name] == 0):
                host, port = self._hosts[field.name], self.numbers[field.name]
                if port:
                    lock = _reserve(host, port, what=field.what, option=field.option)
                else:
                    self.numbers[field.name], lock = next(_free_ports(host))
                self._locks.append(lock)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Free them; may be called again."""
        while self._locks:
            self._locks.pop().release()


def check_addresses(config: StackConfig, *, has_key: bool) -> None:
    """Raise LaunchError if other machines could reach a port of the stack, and inference needs no key."""
    hosts = {option_of(field.host_field): getattr(config, field.host_field) for field in ports_of(config)}
    check_exposure(hosts, has_key=has_key, is_forced=config.allow_network_without_key)


def check_ports(config: StackConfig) -> None:
    """Raise PortTakenError for the first port of the stack that is in use; 0 is never in use."""
    for field in ports_of(config):
        host, port = getattr(config, field.host_field), getattr(config, field.name)
        check_free(host, port, what=field.what, option=field.option)


def check_free(host: str, port: int, *, what: str, option: str) -> None:
    """Raise PortTakenError naming the port and the option that changes it, if it cannot be bound on `host`."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        # Like the servers: a connection in TIME_WAIT from an earlier run does not occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(f"port {port} ({what}) is already in use; choose another with {option}") from error
            raise LaunchError(f"cannot bind {host}:{port} ({what}, {option}): {error.strerror}") from error


def pick_free(host: str, count: int) -> list[int]:
    """`count` different ports that are free and not reserved now; raises LaunchError if there are not so many.

    They are bound only when an engine is up, so they are outside the range that the kernel uses for outgoing
    connections. They are not reserved: use ReservedPorts for that.
    """
    picked = []
    with closing(_free_ports(host)) as found:
        while len(picked) < count:
            port, lock = next(found)
            lock.release()
            picked.append(port)
    return picked


def _free_ports(host: str) -> Generator[tuple[int, PortLock]]:
    """Free ports of `host` in random order, each reserved; raises LaunchError after the last."""
    # Not from the seeded generator: programs with the same seed would pick the same ports.
    for port in random.SystemRandom().sample(LISTENING, len(LISTENING)):
        with suppress(PortTakenError):
            yield port, _reserve(host, port, what="a free port", option="--host")
    raise LaunchError(f"no free port on {host} from {LISTENING.start} to {LISTENING.stop - 1}")


def reserve_front_end(host: str, port: int, field_name: str = "port") -> PortLock | None:
    """Reserve a port of a front end that is started by itself; None where the launcher that started it has done so.

    field_name: its field in StackConfig. Raises PortTakenError, LaunchError.
    """
    (field,) = (field for field in FIELDS if field.name == field_name)
    try:
        return _reserve(host, port, what=field.what, option=field.option)
    except PortTakenError as error:
        if error.pid == os.getppid():
            return None
        raise


def _reserve(host: str, port: int, *, what: str, option: str) -> PortLock:
    """The reservation of a port that can be bound. Raises PortTakenError, LaunchError."""
    try:
        address = str(socket.getaddrinfo(host, port, _family(host), socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise LaunchError(f"cannot bind {host}:{port} ({what}, {option}): {error.strerror}") from error
    try:
        lock = PortLock(address, port)
    except NameHeldError as error:
        state = "serving" if _accepts_connections(address, port) else "still starting"
        message = f"port {port} ({what}) is taken by tritonlive, {error.holder}, {state}; choose another with {option}"
        raise PortTakenError(message, pid=error.pid) from None
    try:
        check_free(host, port, what=what, option=option)
    except BaseException:
        lock.release()
        raise
    return lock


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _accepts_connections(address: str, port: int) -> bool:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    with socket.socket(_family(local), socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        return client.connect_ex((local, port)) == 0
