"""vLLM's rendezvous for NCCL, hosted so that it can be cancelled.

vLLM's workers connect to a TCPStore at the trainer and wait there for the id of the NCCL group, for 300 s, and their
engines wait with them. Closing the store ends the wait of connected workers; a worker that comes later tries to connect
for 300 s. So the store stays open, and holds an id that no worker can read: all fail at once, early or late.

vLLM's own trainer waits in the constructor of the store, which cannot be interrupted. It returns when enough clients
have connected, so `call_off` connects that many.
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

# The key of the group's id at a vLLM worker: `StatelessProcessGroup.broadcast_obj(..., src=0)`, its first broadcast.
ID_KEY = "broadcast_from/0/0"
CALLED_OFF = "\0the trainer cancelled the rendezvous"
# The store's constructor must not time out before the deadline: that would close the store.
STORE_TIMEOUT = timedelta(hours=1)
SEAT_TIMEOUT = timedelta(seconds=5)
# How long a cancelled rendezvous stays open for late workers, whose control call was under way.
LINGER_S = 60.0


class NcclRendezvous:
    """Rank 0's side. It listens at one address of this machine only, for `world_size` - 1 workers."""

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
                use_libuv=False,  # as vLLM sets it
                master_listen_fd=descriptor,
            )

        self._hosting = spawn(host, "nccl-rendezvous")

    def wait(self, deadline: Deadline, unless: "Future[None]") -> "StatelessProcessGroup":
        """Wait until all workers have come. Raises DeadlineError, TransferError, or the error of `unless`."""
        from vllm.distributed.utils import StatelessProcessGroup

        what = f"nccl: {self.world_size - 1} workers have not all connected to {self.address}:{self.port}"
        try:
            store = wait(self._hosting, deadline, what, unless)
        except RuntimeError as error:
            raise TransferError(f"nccl: the rendezvous failed: {str(error).partition(chr(10))[0]}") from None
        return StatelessProcessGroup(rank=0, world_size=self.world_size, store=store)

    def call_off(self) -> None:
        """Make every worker that waits, or comes within a minute, fail at once."""
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
        """Release the store. A formed group does not need it, but may hold it."""
        self._hosting = Future()


def _linger(owned: list[distributed.TCPStore]) -> None:
    time.sleep(LINGER_S)
    owned.clear()
