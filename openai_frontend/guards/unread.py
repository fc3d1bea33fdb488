"""Ends a stream whose client does not read, before what waits for the client takes the memory.

vLLM 0.32 merges all that a client has not read into one output without limit (`RequestOutputCollector`), and makes
one answer of it once the client reads: with n=64 and logprobs=20, 840 MB, and seconds in which nobody else is served.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError
from vllm.outputs import RequestOutput

from openai_frontend.vllm_seam import RequestOutputCollector


class ReadTooSlow(GracefulHTTPError):
    """The last event of a stream whose client did not read."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the client left more than {limit} tokens and logprobs unread, the server's --max-unread-tokens",
            HTTPStatus.REQUEST_TIMEOUT,
        )


class LimitedQueue(RequestOutputCollector):
    """A queue for the results of one prompt, which vLLM made. Call `limit_unread` before the first result."""

    limit: int
    num_unread: int
    on_overflow: Callable[["LimitedQueue"], None]

    def limit_unread(self, limit: int, on_overflow: Callable[["LimitedQueue"], None]) -> None:
        """Have `on_overflow` called once with this queue when more than `limit` tokens and logprobs wait in it."""
        self.limit, self.num_unread, self.on_overflow = limit, 0, on_overflow

    def put(self, output: Any) -> None:
        if self.output is None:
            self.num_unread = 0
        elif self.aggregate and isinstance(output, RequestOutput):
            was_within = self.num_unread <= self.limit
            self.num_unread += size_of(output)
            if was_within and self.num_unread > self.limit:
                # Later: the caller is in the middle of the outputs of a step.
                asyncio.get_running_loop().call_soon(self.on_overflow, self)
        super().put(output)


def size_of(result: RequestOutput) -> int:
    """Tokens of `result`, logprob candidates included."""
    return sum(
        len(output.token_ids) * (1 + len(output.logprobs[0] or ()) if output.logprobs else 1)
        for output in result.outputs
    )
