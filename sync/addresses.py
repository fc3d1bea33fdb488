"""This machine's addresses: where a trainer listens, and how other machines reach it."""

import socket

from .errors import TransferError


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens at one address only; port 0 picks a free one.

    Raises TransferError when the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise TransferError(
            f"cannot listen on master_address {address}, master_port {port}: {error.strerror or error}; "
            "give an address of this machine that the replicas reach, and a free port or 0"
        ) from None
    return listener


def own_address_towards(address: str, port: int) -> str:
    """This machine's address on its route to another machine: its end of a group listens there."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)  # a datagram socket: nothing is sent
        return probe.getsockname()[0]
