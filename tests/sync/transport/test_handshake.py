"""Only workers that know the secret get a link. Strangers cost nothing."""

import os
import socket
import threading
import time

import pytest

from sync import TransferError
from sync.transport import proofs
from sync.transport.link import MAC_BYTES, Link
from sync.transport.messages import MessageCode
from sync.transport.proofs import ANSWER_BYTES, HELLO_BYTES, RANK_BYTES
from sync.transport.trainer import handshake as handshake_module
from sync.transport.trainer.handshake import TrainerHandshake
from sync.transport.worker import handshake as worker_handshake
from sync.transport.worker.handshake import join

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
SECRET, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def handshake():
    with TrainerHandshake("127.0.0.1", 0, SECRET) as listening:
        yield listening


class Joining:
    """Workers that join in the background."""

    def __init__(self, handshake: TrainerHandshake) -> None:
        self._handshake = handshake
        self.links: dict[int, Link] = {}
        self.errors: dict[int, Exception] = {}
        self._threads: list[threading.Thread] = []

    def start(self, rank: int, secret: str = SECRET, *, is_local: bool = True, timeout_s: float = 5) -> None:
        def run() -> None:
            local = self._handshake.local_address if is_local else ""
            try:
                self.links[rank] = join("127.0.0.1", self._handshake.port, local, secret, rank, timeout_s)
            except TransferError as error:
                self.errors[rank] = error

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.fixture
def joining(handshake):
    workers = Joining(handshake)
    yield workers
    workers.wait()
    for link in workers.links.values():
        link.close()


def test_workers_get_a_link_near_and_far(handshake, joining):
    joining.start(1)
    joining.start(2, is_local=False)
    links = handshake.accept(2, 5)
    joining.wait()
    assert {rank: link.is_local for rank, link in links.items()} == {1: True, 2: False}
    for rank, link in links.items():
        link.signal(MessageCode.CANCEL, reason=str(rank))
        assert joining.links[rank].wait(5).fields == {"reason": str(rank)}
        joining.links[rank].signal(MessageCode.READY)
        assert link.wait(5).code is MessageCode.READY
        link.close()


def test_a_local_socket_that_is_not_there_is_no_failure(handshake, joining):
    handshake.local_address, real = "nobody-listens-here", handshake.local_address
    joining.start(1)
    (link,) = handshake.accept(1, 5).values()
    assert not link.is_local
    link.close()
    handshake.local_address = real


@pytest.mark.fault
@pytest.mark.row(20)
@pytest.mark.parametrize("is_local", [True, False])
def test_who_does_not_know_the_secret_gets_no_rank(handshake, joining, is_local):
    joining.start(1, OTHER, is_local=is_local)
    with pytest.raises(TransferError, match=r"workers 1, 2 did not join within 0\.6 s"):
        handshake.accept(2, 0.6)
    joining.wait()
    assert "does not know the group's secret" in str(joining.errors[1])


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_proof_without_the_secret_takes_no_workers_place(handshake, joining):
    """A free rank, and everything right but the HMAC."""
    with socket.create_connection(("127.0.0.1", handshake.port)) as stranger:
        hello = (1).to_bytes(RANK_BYTES, "little") + bytes(HELLO_BYTES - RANK_BYTES)
        stranger.sendall(hello)
        threading.Timer(0.3, lambda: stranger.sendall(bytes(MAC_BYTES))).start()
        threading.Timer(0.8, joining.start, [1]).start()
        (link,) = handshake.accept(1, 5).values()
        joining.wait()
        joining.links[1].signal(MessageCode.READY)
        assert link.wait(5).code is MessageCode.READY  # the link is the worker's
        link.close()
        assert len(stranger.recv(ANSWER_BYTES, socket.MSG_WAITALL)) == ANSWER_BYTES
        assert not is_open(stranger)


@pytest.mark.fault
@pytest.mark.row(20)
@pytest.mark.parametrize("rank", [0, 3, 2**31])
def test_a_rank_that_the_group_does_not_have_is_refused(handshake, joining, rank):
    joining.start(rank)
    with pytest.raises(TransferError, match="workers 1, 2 did not join"):
        handshake.accept(2, 0.5)
    joining.wait()
    with pytest.raises(TransferError, match="the trainer is gone"):
        joining.links[rank].wait(5)


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_rank_that_is_taken_is_refused(handshake, joining):
    again = Joining(handshake)
    joining.start(1)
    again.start(1)
    with pytest.raises(TransferError, match="workers 2 did not join"):
        handshake.accept(2, 0.6)
    for workers in (joining, again):
        workers.wait()
    # All links are closed, since not all workers have joined.
    for link in [*joining.links.values(), *again.links.values()]:
        with pytest.raises(TransferError, match="the trainer is gone"):
            link.wait(5)
    for link in again.links.values():
        link.close()


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_trainer_that_does_not_know_the_secret_is_no_trainer():
    with TrainerHandshake("127.0.0.1", 0, OTHER) as impostor:
        workers = Joining(impostor)
        workers.start(1)
        with pytest.raises(TransferError, match="did not join"):
            impostor.accept(1, 0.5)
        workers.wait()
    assert "does not know the group's secret" in str(workers.errors[1])


@pytest.mark.fault
@pytest.mark.row(20)
def test_a_trainer_that_lets_anybody_in_cannot_prove_itself():
    def answer(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.recv(HELLO_BYTES, socket.MSG_WAITALL)
            connection.sendall(bytes(ANSWER_BYTES))
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(TransferError, match="does not know the group's secret"):
            join("127.0.0.1", server.getsockname()[1], "", SECRET, 1, 5)
        thread.join()


@pytest.mark.fault
@pytest.mark.row(20)
def test_what_a_stranger_overhears_opens_no_link(handshake):
    """A worker's greeting answers one nonce of the trainer's; the next connection gets another."""
    overheard = bytearray()

    def relay(server: socket.socket) -> None:
        with server.accept()[0] as near, socket.create_connection(("127.0.0.1", handshake.port)) as far:
            overheard.extend(near.recv(HELLO_BYTES, socket.MSG_WAITALL))
            far.sendall(overheard)
            near.sendall(far.recv(ANSWER_BYTES, socket.MSG_WAITALL))
            overheard.extend(near.recv(MAC_BYTES, socket.MSG_WAITALL))

    def accept_none() -> None:
        with pytest.raises(TransferError, match="did not join"):
            handshake.accept(1, 1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=relay, args=(server,)), threading.Thread(target=accept_none)]
        for thread in threads:
            thread.start()
        join("127.0.0.1", server.getsockname()[1], "", SECRET, 1, 5).close()
        for thread in threads:
            thread.join()
    assert len(overheard) == HELLO_BYTES + MAC_BYTES
    assert bytes.fromhex(SECRET) not in overheard
    with socket.create_connection(("127.0.0.1", handshake.port)) as stranger:
        stranger.sendall(overheard)
        accept_none()


@pytest.mark.fault
@pytest.mark.row(20)
@pytest.mark.parametrize("greeting", [b"", b"short", b"0" * (HELLO_BYTES + MAC_BYTES), b"1" * 10_000])
@pytest.mark.parametrize("is_local", [True, False])
def test_strangers_do_not_delay_workers(handshake, joining, greeting, is_local):
    strangers = []
    for _ in range(40):
        stranger = socket.socket(socket.AF_UNIX if is_local else socket.AF_INET, socket.SOCK_STREAM)
        stranger.connect(f"\0{handshake.local_address}" if is_local else ("127.0.0.1", handshake.port))
        stranger.sendall(greeting)
        strangers.append(stranger)
    joining.start(1)
    began = time.monotonic()
    (link,) = handshake.accept(1, 10).values()
    assert time.monotonic() - began < 2
    link.close()
    for stranger in strangers:
        stranger.close()


def is_open(connection: socket.socket) -> bool:
    """Whether it has received nothing, not even the end."""
    connection.settimeout(0.2)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False
    return False


def test_a_silent_connection_hears_nothing_until_the_trainer_leaves(handshake, joining, monkeypatch):
    """A replica notices that its trainer is gone, whether it connects before the workers join or after."""
    monkeypatch.setattr(handshake_module, "GREETING_TIMEOUT_S", 0.1)
    early = socket.create_connection(("127.0.0.1", handshake.port))
    threading.Timer(1, joining.start, [1]).start()
    handshake.accept(1, 5)[1].close()
    late = socket.create_connection(("127.0.0.1", handshake.port))
    assert is_open(early)
    assert is_open(late)
    handshake.close()
    assert not is_open(early)
    assert not is_open(late)
    early.close()
    late.close()


@pytest.mark.fault
def test_a_crowd_of_silent_strangers_is_bounded_and_the_first_stay(handshake, joining, monkeypatch):
    monkeypatch.setattr(handshake_module, "MAX_SILENT", 8)
    monkeypatch.setattr(handshake_module, "GREETING_TIMEOUT_S", 0.5)
    crowd = [socket.create_connection(("127.0.0.1", handshake.port)) for _ in range(20)]
    threading.Timer(3, joining.start, [1]).start()
    handshake.accept(1, 10)[1].close()
    assert [is_open(stranger) for stranger in crowd] == [True] * 8 + [False] * 12
    for stranger in crowd:
        stranger.close()


@pytest.mark.fault
def test_who_begins_to_speak_and_does_not_go_on_is_closed(handshake, joining, monkeypatch):
    monkeypatch.setattr(handshake_module, "GREETING_TIMEOUT_S", 0.3)
    stranger = socket.create_connection(("127.0.0.1", handshake.port))
    stranger.sendall(b"short")
    threading.Timer(1, joining.start, [1]).start()
    handshake.accept(1, 10)[1].close()
    assert not is_open(stranger)
    stranger.close()


@pytest.mark.fault
def test_another_users_process_is_refused_at_the_local_socket(handshake, joining, monkeypatch):
    """Every process appears to belong to another user. The kernel reports the owner."""
    for side in (handshake_module, worker_handshake):
        monkeypatch.setattr(side, "is_same_user", lambda connection: connection.family != socket.AF_UNIX)
    joining.start(1)
    (link,) = handshake.accept(1, 5).values()
    assert not link.is_local
    link.close()


@pytest.mark.fault
def test_a_worker_that_only_the_trainer_refuses_joins_over_the_network(handshake, joining, monkeypatch):
    """A trainer of root and a server of another user: the server accepts root's socket, root refuses the server's."""
    monkeypatch.setattr(handshake_module, "is_same_user", lambda connection: connection.family != socket.AF_UNIX)
    joining.start(1)
    (link,) = handshake.accept(1, 5).values()
    assert not link.is_local
    link.close()


def test_whose_a_process_is(monkeypatch):
    near, far = socket.socketpair()
    assert proofs.is_same_user(near)
    own = os.getuid()
    monkeypatch.setattr(proofs.os, "getuid", lambda: own + 1)
    assert proofs.is_same_user(near) == (own == 0)
    near.close()
    far.close()


def test_no_trainer_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(TransferError, match=r"no trainer at 127\.0\.0\.1:\d+ within 1 s: Connection refused"):
            join("127.0.0.1", free.getsockname()[1], "", SECRET, 1, 1)


def test_a_trainer_that_does_not_answer(handshake):
    with pytest.raises(TransferError, match="did not let rank 1 join: no answer"):
        join("127.0.0.1", handshake.port, handshake.local_address, SECRET, 1, 0.3)
