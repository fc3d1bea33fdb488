"""Sends responses from a thread of their own, in order.

Triton's `send` copies into shared memory and waits until Triton has taken the response: tens of microseconds that would
block the event loop.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonlive.wire.error_codes import ErrorCode, encode_error

from .tensors import RequestError

# With this many queued jobs, streams wait in `caught_up`.
BEHIND_JOBS = 16
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Sender:
    """A request's response sender, for the writer's thread only.

    Triton frees the request with its last response. A call about a freed request ends the server with a segmentation
    fault (triton-inference-server/server#8192). So all calls go through one thread, and none follows the last response.
    """

    def __init__(self, sender: Any) -> None:
        """`sender`: Triton's InferenceResponseSender."""
        self._sender = sender
        self._is_closed = False

    def send(self, tensors: Mapping[str, np.ndarray], final: bool) -> None:
        """Send one response. `tensors` have the shapes of config.pbtxt with the batch dimension in front."""
        outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items()]
        self._send(pb_utils.InferenceResponse(output_tensors=outputs), final=final)

    def finish(self) -> None:
        """Close the request: a last response without tensors."""
        self._send(final=True)

    def fail(self, error: Exception) -> None:
        """Answer with `error` and close the request."""
        self.fail_with(message_of(error), code_of(error))

    def fail_with(self, message: str, code: ErrorCode) -> None:
        """Answer with this message, as it is, and close the request."""
        error = pb_utils.TritonError(message, triton_code(code))
        self._send(pb_utils.InferenceResponse(error=error), final=True)

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled the request; False once it is closed."""
        return not self._is_closed and self._sender.is_cancelled()

    def _send(self, *response: Any, final: bool) -> None:
        if self._is_closed:
            raise RuntimeError("the request is closed")
        self._is_closed = final
        self._sender.send(*response, flags=FINAL if final else 0)


class ResponseWriter:
    """The one thread that calls Triton's response senders."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="response-writer", daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], object]) -> None:
        """Run `job` on the writer's thread, after everything queued before it."""
        self._queue.put(job)

    def send(self, sender: Sender, tensors: Mapping[str, np.ndarray], final: bool) -> None:
        """Send one response; `final` closes the request."""
        self.call(lambda: sender.send(tensors, final))

    @property
    def queue_length(self) -> int:
        """Number of jobs that have not begun."""
        return self._queue.qsize()

    async def caught_up(self) -> None:
        """Return at once if few jobs are queued, else when all jobs queued now are done.

        A stream that waits here gets its next tokens in one response. Otherwise streams would queue responses faster
        than they are sent, and all other requests, control operations included, would wait behind them.
        """
        if self.queue_length >= BEHIND_JOBS:
            await self.drained()

    async def drained(self) -> None:
        """Return when all jobs queued now are done."""
        loop, is_sent = asyncio.get_running_loop(), asyncio.Event()

        def signal() -> None:
            loop.call_soon_threadsafe(is_sent.set)

        self.call(signal)
        await is_sent.wait()

    async def is_cancelled(self, sender: Sender) -> bool:
        """Whether the client has cancelled the request. Asks Triton after all jobs queued before."""
        answers: list[bool] = []  # stays empty if Triton cannot be asked
        self.call(lambda: answers.append(sender.is_cancelled()))
        await self.drained()
        return any(answers)

    def finish(self, sender: Sender) -> None:
        """Close the request: a last response without tensors."""
        self.call(sender.finish)

    def fail(self, sender: Sender, error: Exception) -> None:
        """Answer with `error` and close the request."""
        self.call(lambda: sender.fail(error))

    def close(self) -> None:
        """Finish the queued jobs, then end the thread."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
            except Exception as error:  # a sender that Triton has already closed must not end the thread
                pb_utils.Logger.log_warn(f"a response could not be sent: {error}")


def code_of(error: Exception) -> ErrorCode:
    return error.code if isinstance(error, RequestError) else ErrorCode.INTERNAL


def triton_code(code: ErrorCode) -> int:
    """Triton's own number for `code`."""
    return getattr(pb_utils.TritonError, code.triton_name)


def message_of(error: Exception) -> str:
    """The error's message with its code, which a gRPC stream does not carry otherwise."""
    return encode_error(text_of(error), code_of(error))


def text_of(error: Exception) -> str:
    """The error's message without its code."""
    return str(error) or type(error).__name__
