"""The ranks of one trainer. They meet before a push, so that no rank waits in a collective for one that is missing.

They meet over the store of torch.distributed, by keys and without a collective. Pushes have no numbers, so ranks that
failed to meet once need not agree on a count:

    rank r > 0    sets arrived/r to a fresh token, and waits for called/<token>
    rank 0        waits for all arrived/r, takes each token away (compare_set), and answers called/<token> with the
                  push's id, or with the error that ends it
    rank r > 0    when its time is up, takes its token back; if rank 0 was faster, the rank takes part
"""

import json
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError, TransferError

from .push_channel import PushChannel
from .push_outcome import decode_error, encode_error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

DEFAULT_RANK_TIMEOUT_S = 10.0
# Polled: a blocking wait would lock the store's connection, which the trainer's own collectives use.
FIRST_POLL_S, LONGEST_POLL_S = 0.002, 0.05
LEAD_WAITS = "lead"  # a key: rank 0 is in push
# Values that replace a token: rank 0 has taken it; its rank has given up.
TAKEN, GONE = "taken", "gone"


class TrainerRanks:
    """This rank, the number of ranks, and a store that all of them reach. Rank 0 leads."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: "Store | None" = None,
        rank_timeout_s: float = DEFAULT_RANK_TIMEOUT_S,
    ) -> None:
        """By default a trainer of one process. rank_timeout_s: how long a rank waits for the others to call push."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: must be 0 to {world_size - 1}, got {rank}")
        if world_size > 1 and store is None:
            raise ValueError("store: needed by a trainer of several ranks")
        if rank_timeout_s <= 0:
            raise ValueError(f"rank_timeout_s: must be more than 0 seconds, got {rank_timeout_s}")
        self.rank = rank
        self.world_size = world_size
        self.rank_timeout_s = rank_timeout_s
        self._base = store
        self._last: PushChannel | None = None

    @classmethod
    def current(
        cls, group: "ProcessGroup | None" = None, rank_timeout_s: float = DEFAULT_RANK_TIMEOUT_S
    ) -> "TrainerRanks":
        """The ranks of `group`, by default torch.distributed's default group; one rank when that is not initialised."""
        import torch.distributed as distributed

        if not distributed.is_available() or not distributed.is_initialized():
            return cls(rank_timeout_s=rank_timeout_s)
        chosen = group if group is not None else distributed.group.WORLD
        if chosen is None:
            return cls(rank_timeout_s=rank_timeout_s)
        size = distributed.get_world_size(chosen)
        store = chosen.get_group_store() if size > 1 else None
        return cls(distributed.get_rank(chosen), size, store, rank_timeout_s)

    def meet(self, why: str) -> PushChannel:
        """Wait until every rank has called push; `why` says why all must. Raises SourceError, the same at all ranks.

        Raises TransferError when the store is gone.
        """
        try:
            return self._call_others(why) if self.rank == 0 else self._arrive(why)
        except RuntimeError as error:  # torch.distributed.DistError
            raise TransferError(f"trainer rank {self.rank}: the store of torch.distributed failed: {error}") from None

    # ---- rank 0 -------------------------------------------------------------------------------------------------

    def _call_others(self, why: str) -> PushChannel:
        store = self._store
        missing = set(range(1, self.world_size))
        tokens: dict[int, str] = {}

        def take_tokens() -> bool:
            for rank in sorted(missing):
                if (token := self._take_token(rank)) is not None:
                    tokens[rank] = token
                    missing.discard(rank)
            return not missing

        store.set(LEAD_WAITS, "1")
        try:
            poll(take_tokens, self.rank_timeout_s)
        finally:
            store.delete_key(LEAD_WAITS)
        if missing:
            error = SourceError(self._absence(missing, why))
            self._answer(tokens, encode_error(error))
            raise error
        if self._last is not None:  # all ranks are back: none reads the last push's keys
            self._last.clear()
        push_id = secrets.token_hex(8)
        self._last = PushChannel(self._prefixed(push_id), 0, self.world_size)
        self._answer(tokens, {"push": push_id})
        return self._last

    def _take_token(self, rank: int) -> str | None:
        key = f"arrived/{rank}"
        if not self._store.check([key]):
            return None
        token = self._store.get(key).decode()
        if token in (TAKEN, GONE):
            return None
        return token if self._store.compare_set(key, token, TAKEN).decode() == TAKEN else None

    def _answer(self, tokens: dict[int, str], answer: dict[str, Any]) -> None:
        for token in tokens.values():
            self._store.set(f"called/{token}", json.dumps(answer))

    # ---- the other ranks ----------------------------------------------------------------------------------------

    def _arrive(self, why: str) -> PushChannel:
        store, token = self._store, secrets.token_hex(8)
        key, called = f"arrived/{self.rank}", f"called/{token}"

        def is_called() -> bool:
            return store.check([called])

        store.set(key, token)
        is_in, is_taken = False, False
        try:
            is_in = poll(is_called, self.rank_timeout_s)
            if not is_in and store.check([LEAD_WAITS]):  # rank 0 came late, and waits for another rank
                is_in = poll(is_called, self.rank_timeout_s)
        finally:  # also when interrupted: rank 0 must not count on a rank that is gone
            if not is_in:
                is_taken = store.compare_set(key, token, GONE).decode() == TAKEN
        if not is_in and not (is_taken and poll(is_called, self.rank_timeout_s)):
            raise SourceError(self._absence({0}, why))
        answer = json.loads(store.get(called))
        store.delete_key(called)
        if "push" not in answer:
            raise decode_error(answer, "rank 0")
        return PushChannel(self._prefixed(answer["push"]), self.rank, self.world_size)

    def _absence(self, ranks: set[int], why: str) -> str:
        named = ", ".join(map(str, sorted(ranks)))
        verb = f"rank {named} has" if len(ranks) == 1 else f"ranks {named} have"
        return (
            f"{verb} not called push within {self.rank_timeout_s:g} s; {why}, "
            "so every rank of the trainer must call WeightSync.push"
        )

    @property
    def _store(self) -> "Store":
        return self._prefixed("meeting")

    def _prefixed(self, name: str) -> "Store":
        from torch.distributed import PrefixStore

        if self._base is None:
            raise ValueError("store: a trainer of one rank has none")
        return PrefixStore(f"tritonlive/push/{name}", self._base)


def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition became true in time. Checks it at growing intervals."""
    ends, pause = time.monotonic() + seconds, FIRST_POLL_S
    while not condition():
        if (left := ends - time.monotonic()) <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_POLL_S)
    return True
