"""A worker's copy of the gloo group's rendezvous."""

from sync.transport.link import POLL_S, Link
from sync.transport.messages import MessageCode
from sync.transport.relay_store import RelayStore


def worker_store(link: Link, timeout_s: float) -> RelayStore:
    """A worker's copy."""

    def receive() -> None:
        message = link.receive(POLL_S)
        if message is not None and message.code is MessageCode.STORE:
            store.put(message)

    store = RelayStore(lambda key, value: link.signal(MessageCode.STORE, key=key, value=value), receive, timeout_s)
    return store
