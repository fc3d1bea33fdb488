"""The accelerator stream of the thread that calls push; the push's own threads wait for it.

A push reads tensors in other threads, which have other current streams. A kernel that the caller has queued, such as
the optimizer's step, may still be writing those tensors.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

from sync.weights.weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class CallerStream:
    """The capturing thread's device and position in its stream. Does nothing without an accelerator."""

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
        """Make this thread's current stream wait for the work that the caller had queued. Does not block the thread."""
        import torch

        if self._event is not None:
            torch.accelerator.current_stream().wait_event(self._event)

    def bound(self, call: Callable[[], T]) -> Callable[[], T]:
        """Wrap a call for another thread: it runs on the caller's device, after the caller's work."""

        def run() -> T:
            import torch

            if self._device_index is not None:
                torch.accelerator.set_device_index(self._device_index)  # each thread has its own
            self.wait()
            return call()

        return run


class StreamOrderedSource(WeightSource):
    """Waits for the caller's stream before each tensor, on the stream that is current at that moment.

    vLLM's packed broadcast reads its source on several streams in turn, so one wait per thread is not enough.
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
