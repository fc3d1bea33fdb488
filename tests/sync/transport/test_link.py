"""Messages between the trainer and a worker: authenticated, in order, and never waited for in vain."""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sync import TransferError
from sync.transport import link as links_module
from sync.transport.link import MAC_BYTES, Link
from sync.transport.messages import MessageCode

KEY = b"k" * 32
FAMILIES = pytest.mark.parametrize("family", ["local", "tcp"])


def connected(family: str) -> tuple[socket.socket, socket.socket]:
    if family == "local":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]


@pytest.fixture
def family():
    return "local"


@pytest.fixture
def ends(family):
    return connected(family)


@pytest.fixture
def pair(ends):
    """The trainer's end, and the worker's."""
    links = (Link(ends[0], KEY, "worker 1", is_trainer=True), Link(ends[1], KEY, "the trainer", is_trainer=False))
    yield links
    for link in links:
        link.close()


@FAMILIES
def test_messages_arrive_in_order_with_their_fields(pair):
    trainer, worker = pair
    digests = list(range(2**63, 2**63 + 100_000))  # more than the kernel takes at once
    sender = threading.Thread(target=trainer.signal, args=(MessageCode.DIGESTS,), kwargs={"digests": digests})
    sender.start()
    message = worker.wait(5)
    sender.join()
    assert (message.code, message.fields) == (MessageCode.DIGESTS, {"digests": digests})
    for number in range(3):
        worker.signal(MessageCode.PROGRESS, bytes=number)
    assert [trainer.wait(5).fields["bytes"] for _ in range(3)] == [0, 1, 2]
    assert trainer.receive(0) is None


def test_descriptors_belong_to_their_messages(pair):
    trainer, worker = pair
    files = [os.memfd_create(str(number)) for number in range(2)]
    trainer.signal(MessageCode.FRAME, num_bytes=1)
    for file in files:
        trainer.signal(MessageCode.SEGMENT, descriptor=file)
    assert worker.wait(5).descriptor == -1
    for file in files:
        got = worker.wait(5).descriptor
        assert os.path.sameopenfile(got, file)
        os.close(got)
        os.close(file)


def open_files(name: str) -> int:
    """How many of this process's descriptors are of the file `name`."""
    targets = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing
            targets.append(str(each.readlink()))
    return sum(target.startswith(name) for target in targets)


def test_descriptors_that_nobody_takes_are_closed(pair):
    trainer, worker = pair
    file = os.memfd_create("unclaimed")
    trainer.signal(MessageCode.FRAME)
    trainer.signal(MessageCode.SEGMENT, descriptor=file)
    os.close(file)
    worker.wait(5)
    worker._recv()  # and no message is made of it
    assert open_files("/memfd:unclaimed") == 1
    worker.close()
    assert open_files("/memfd:unclaimed") == 0


@pytest.mark.fault
@pytest.mark.parametrize("what", ["forged", "repeated", "sent back", "out of order", "of another link"])
def test_messages_that_the_peer_did_not_send_are_refused(ends, pair, what):
    worker = pair[1]

    def recorded(*codes: MessageCode, key: bytes = KEY, is_trainer: bool = True) -> list[bytes]:
        near, far = socket.socketpair()
        link = Link(near, key, "a worker", is_trainer=is_trainer)
        messages = []
        for code in codes:
            link.signal(code)
            messages.append(far.recv(10_000))
        link.close()
        far.close()
        return messages

    if what == "forged":
        (message,) = recorded(MessageCode.DIGESTS)
        data = message[:4] + bytes(MAC_BYTES) + message[4 + MAC_BYTES :]
    elif what == "repeated":
        data = recorded(MessageCode.FRAME)[0] * 2
    elif what == "sent back":
        (data,) = recorded(MessageCode.CANCEL, is_trainer=False)
    elif what == "out of order":
        data = b"".join(reversed(recorded(MessageCode.FRAME, MessageCode.CANCEL)))
    else:
        (data,) = recorded(MessageCode.CANCEL, key=b"other")
    ends[0].sendall(data)
    if what == "repeated":
        assert worker.wait(5).code is MessageCode.FRAME
    with pytest.raises(TransferError, match="a message that the trainer did not send: its HMAC is wrong"):
        worker.wait(5)


def test_a_message_too_large_to_be_one_is_refused(pair, ends):
    ends[0].sendall(b"\xff" * 100)
    with pytest.raises(TransferError, match=r"a message of 4294967295 bytes; at most"):
        pair[1].wait(5)


def test_a_peer_that_says_nothing(pair):
    with pytest.raises(TransferError, match=r"worker 1 sent nothing for 0\.1 s"):
        pair[0].wait(0.1)


def test_a_peer_that_reads_nothing(pair, monkeypatch):
    monkeypatch.setattr(links_module, "STALL_TIMEOUT_S", 0.5)

    def signal_for_ever() -> None:
        while True:
            pair[0].signal(MessageCode.FRAME)

    with pytest.raises(TransferError, match=r"worker 1 read nothing for 0\.5 s"):
        signal_for_ever()


@FAMILIES
@pytest.mark.parametrize("is_own", [True, False])
def test_an_end_that_is_closed_wakes_who_waits(pair, is_own):
    timer = threading.Timer(0.1, pair[0 if is_own else 1].close)
    timer.start()
    began = time.monotonic()
    why = "the link to worker 1 was closed" if is_own else "worker 1 is gone"
    with pytest.raises(TransferError, match=why):
        pair[0].wait(60)
    assert time.monotonic() - began < 5
    timer.join()
    with pytest.raises(TransferError, match=why):
        pair[0].check()

    def signal_often() -> None:
        for _ in range(100):  # the first one shows TCP that the peer is gone
            pair[0].signal(MessageCode.FRAME)
            time.sleep(0.02)

    with pytest.raises(TransferError, match=why):
        signal_often()


@FAMILIES
def test_a_peer_that_is_gone_is_noticed_behind_unread_messages(pair):
    trainer, worker = pair
    trainer.signal(MessageCode.FRAME)
    worker.check()
    trainer.close()
    time.sleep(0.05)
    with pytest.raises(TransferError, match="the trainer is gone"):
        worker.check()
    assert worker.wait(1).code is MessageCode.FRAME
    with pytest.raises(TransferError, match="the trainer is gone"):
        worker.wait(1)
