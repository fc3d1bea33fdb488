"""Moving tensors to a GPU, for the backends that send from one."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sync.errors import TransferError
from sync.weights.weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

GPU_BACKENDS = ("nccl", "ipc")


class DeviceSource(WeightSource):
    """Moves the tensors of a source to one device, one by one: the device holds one extra tensor, not a second model.

    on_sent: called after each tensor, with the bytes yielded so far.
    """

    def __init__(
        self, source: WeightSource, device: "torch.device", on_sent: Callable[[int], None] | None = None
    ) -> None:
        self._source = source
        self._device = device
        self._on_sent = on_sent

    def metadata(self) -> list[ParamMeta]:
        return self._source.metadata()

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        num_sent = 0
        for name, tensor in self._source:
            yield name, tensor.to(self._device)
            num_sent += tensor.nbytes
            if self._on_sent is not None:
                self._on_sent(num_sent)


def current_gpu() -> "torch.device":
    """This thread's current GPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def gpu_problem(backend: str) -> str | None:
    """Why this process cannot push over `backend`, with the remedy; None when it can."""
    if backend not in GPU_BACKENDS:
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return (
        f"backend {backend!r} sends from a GPU, and this process has none (torch.cuda.is_available() is False); "
        "push through host memory with --backend gloo (backend='gloo'), to servers started with "
        '--weight-transfer-config \'{"backend": "gloo"}\''
    )


def require_gpu(backend: str) -> None:
    """Raises TransferError when this process cannot push over `backend`. Call it before any replica is asked."""
    if problem := gpu_problem(backend):
        raise TransferError(problem)
