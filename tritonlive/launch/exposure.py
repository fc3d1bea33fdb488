"""Refuses to open a port to other machines while inference needs no key."""

import ipaddress
import socket

from tritonlive.wire.environment import API_KEY_VARIABLE

from .errors import LaunchError

FORCE_OPTION = "--allow-network-without-key"


def check_exposure(hosts: dict[str, str], *, has_key: bool, is_forced: bool) -> None:
    """`hosts`: the address of each option. Raises LaunchError for the first that other machines reach."""
    if has_key or is_forced:
        return
    for option, host in hosts.items():
        if not is_loopback(host):
            raise LaunchError(
                f"{option} {host}: other machines could reach this address, and inference needs no key. Set a key with "
                f"--api-key or {API_KEY_VARIABLE}, or keep to 127.0.0.1; {FORCE_OPTION} starts it as it is"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. A name without addresses cannot be bound: nobody reaches it."""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except socket.gaierror:
        return True
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
