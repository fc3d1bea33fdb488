"""Sends the steps that wait on front ends' channels."""

import asyncio
from collections.abc import Callable

from tritonlive.backend.output_tensors import octets
from tritonlive.backend.responses import ResponseWriter
from tritonlive.backend.tensors import Unavailable
from tritonlive.backend.vllm_seam.messages import EngineCoreOutputs, OutputsEncoder
from tritonlive.wire.tensor_names import ENGINE_OUTPUTS

from .front_end_channel import FrontEndChannel

# Steps that carry only gauges, or counts of kept tokens, are sent at most this often.
GAUGES_INTERVAL_S = 0.1


class ChannelWriter:
    """One message for all steps that wait on a channel when the writer's thread gets to it."""

    def __init__(
        self,
        writer: ResponseWriter,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[FrontEndChannel, Unavailable], None],
    ) -> None:
        """on_lost: called on `loop` when a message could not be sent, and its tokens are lost."""
        self._writer = writer
        self._loop = loop
        self._on_lost = on_lost
        self._encoder = OutputsEncoder()
        self.num_messages = 0
        """Messages sent on channels. Written by the writer's thread only."""
        self.num_steps = 0
        """Engine steps in these messages. Written by the writer's thread only."""

    def hold(self, channel: FrontEndChannel, step: EngineCoreOutputs) -> None:
        """Send a step of gauges or counts soon, in place of the one that is held, unless another step comes before."""
        if channel.held is None:
            self._loop.call_later(GAUGES_INTERVAL_S, self._send_held, channel)
        channel.held = step

    def _send_held(self, channel: FrontEndChannel) -> None:
        step, channel.held = channel.held, None
        if step is not None:
            channel.add(step)
            self.flush(channel)

    def flush(self, channel: FrontEndChannel) -> None:
        """Send the steps that wait on the channel."""
        # One job in the writer's queue at a time: steps that arrive before it runs are sent in the same message.
        if not channel.is_queued:
            channel.is_queued = True
            self._writer.call(lambda: self._write(channel))

    def _write(self, channel: FrontEndChannel) -> None:
        """Send a channel's waiting steps as one message, then close finished requests. Runs on the writer's thread."""
        steps, finished = channel.drain()
        for sender in finished:  # queued behind this job, and whether or not it fails
            self._writer.finish(sender)
        if not steps:
            return
        try:
            channel.sender.send({ENGINE_OUTPUTS: octets(self._encoder.encode(steps))}, final=False)
        except Exception as error:
            # Tokens are lost, for example because shared memory is full. Clients must hear of it.
            reason = Unavailable(f"engine_channel: a message could not be sent: {error}")
            self._loop.call_soon_threadsafe(self._on_lost, channel, reason)
            return
        self.num_messages += 1
        self.num_steps += len(steps)
