"""The trainer's copy of the gloo group's rendezvous."""

from sync.transport.link import POLL_S
from sync.transport.messages import Message, MessageCode
from sync.transport.relay_store import RelayStore

from .worker_links import WorkerLinks


def trainer_store(workers: WorkerLinks, timeout_s: float) -> RelayStore:
    """The trainer's copy. It passes every worker's values on to the other workers."""

    def receive() -> None:
        workers.poll(POLL_S)
        workers.raise_rejections("does not join")

    def relay(rank: int, message: Message) -> None:
        store.put(message)
        workers.signal(MessageCode.STORE, [other for other in workers.ranks if other != rank], **message.fields)

    store = RelayStore(lambda key, value: workers.signal(MessageCode.STORE, key=key, value=value), receive, timeout_s)
    workers.on_store = relay
    return store
