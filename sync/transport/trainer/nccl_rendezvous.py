"""vLLM's rendezvous for NCCL, hosted so that it can be called off.

vLLM's workers connect to a TCPStore at the trainer and wait there, with their engine, for the id of the NCCL group:
300 s, whatever happens. Closing the store ends that for those who are connected; one that comes later tries to connect
for 300 s. So the store stays, and holds an id that none of them can read: all fail at once, whenever they come.

vLLM's own trainer waits in the constructor of the store, which cannot be left either. It returns when enough clients
have connected: calling off connects as many.
"""

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import distributed

from sync.addresses import listen
from sync.deadline import Deadline, spawn, wait
from sync.errors import TransferError

if TYPE_CHECKING:
    from vllm.distributed.utils import StatelessProcessGroup

# Where a vLLM worker reads the group's id: `StatelessProcessGroup.broadcast_obj(..., src=0)`, its first broadcast.
ID_KEY = "broadcast_from/0/0"
CALLED_OFF = "\0the trainer called the rendezvous off"
# The store's constructor must not give up before the deadline: its end would close the store.
STORE_TIMEOUT = timedelta(hours=1)
SEAT_TIMEOUT = timedelta(seconds=5)
# How long a rendezvous that was called off stays for those who come late: a control call that was under way.
LINGER_S = 60.0


class NcclRendezvous:
    """Rank 0's end: listens at one address of this machine only, for `world_size` - 1 workers."""

    def __init__(self, address: str, port: int, world_size: int) -> None:
        """Listen from now on; port 0 picks a free one. Raises TransferError as `listen`."""
        listener = listen(address, port)
        self.address = address
        self.port: int = listener.getsockname()[1]
        self.world_size = world_size
        descriptor = listener.detach()

        def host() -> distributed.TCPStore:
            return distributed.TCPStore(
                address,
                self.port,
                world_size,
                is_master=True,
                timeout=STORE_TIMEOUT,
                wait_for_workers=True,
                use_libuv=False,  # as vLLM has it
                master_listen_fd=descriptor,
            )

        self._hosting = spawn(host, "nccl-rendezvous")

    def wait(self, deadline: Deadline, unless: "Future[None]") -> "StatelessProcessGroup":
        """All workers have come. Raises the error of `unless` when it has one first; DeadlineError, TransferError."""
        from vllm.distributed.utils import StatelessProcessGroup

        what = f"nccl: {self.world_size - 1} workers have not all come to {self.address}:{self.port}"
        try:
            store = wait(self._hosting, deadline, what, unless)
        except RuntimeError as error:
            raise TransferError(f"nccl: the rendezvous failed: {str(error).partition(chr(10))[0]}") from None
        return StatelessProcessGroup(rank=0, world_size=self.world_size, store=store)

    def call_off(self) -> None:
        """Let every worker that waits, or comes within a minute, fail at once."""
        with suppress(RuntimeError):
            for _ in range(self.world_size - 1):
                if self._hosting.done():
                    break
                distributed.TCPStore(self.address, self.port, self.world_size, timeout=SEAT_TIMEOUT, use_libuv=False)
            store = self._hosting.result(SEAT_TIMEOUT.total_seconds())
            store.set(ID_KEY, CALLED_OFF)
            threading.Thread(target=_linger, args=([store],), name="nccl-called-off", daemon=True).start()
        self.close()

    def close(self) -> None:
        """Let go of the store, which a group that was formed does not need; it may still be held by that."""
        self._hosting = Future()


def _linger(owned: list[distributed.TCPStore]) -> None:
    time.sleep(LINGER_S)
    owned.clear()
