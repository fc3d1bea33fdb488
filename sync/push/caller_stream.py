"""The accelerator stream of whoever calls push, which the push's own threads have to wait for.

A push reads tensors in another thread, whose current stream is another one, or the device's default: a kernel that the
caller has queued, such as the optimizer's step, may still be writing them.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

from sync.weights.weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class CallerStream:
    """Device and position in the stream of the thread that captured it. Does nothing without an accelerator."""

    def __init__(self, device_index: int | None = None, event: "torch.Event | None" = None) -> None:
        self._device_index = device_index
        self._event = event

    @classmethod
    def capture(cls) -> Self:
        """Call in the caller's thread: records an event on the current stream of the current device."""
        import torch

        if not torch.accelerator.is_available():
            return cls()
        device_index = torch.accelerator.current_device_index()
        return cls(device_index, torch.accelerator.current_stream().record_event())

    def wait(self) -> None:
        """Let the calling thread's current stream wait for what the caller had queued; does not block the thread."""
        import torch

        if self._event is not None:
            torch.accelerator.current_stream().wait_event(self._event)

    def bound(self, call: Callable[[], T]) -> Callable[[], T]:
        """The call, to be made in another thread, on the caller's device and after the caller's work."""

        def run() -> T:
            import torch

            if self._device_index is not None:
                torch.accelerator.set_device_index(self._device_index)  # each thread has its own
            self.wait()
            return call()

        return run


class StreamOrderedSource(WeightSource):
    """Waits for the caller's stream before each tensor, on the stream that is current then.

    vLLM's packed broadcast reads its source on streams of its own, in turn: waiting once in the thread does not do.
    """

    def __init__(self, source: WeightSource, caller: CallerStream) -> None:
        self._source = source
        self._caller = caller

    def metadata(self) -> list[ParamMeta]:
        return self._source.metadata()

    def changed(self) -> list[str]:
        return self._source.changed()

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        pairs = iter(self._source)
        while True:
            self._caller.wait()  # also before a gather or a cast, which read the tensor
            try:
                pair = next(pairs)
            except StopIteration:
                return
            yield pair
