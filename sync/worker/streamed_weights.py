"""Weights that vLLM's own engines (NCCL, CUDA IPC) write into the model as they arrive.

From `start` until `load` the model holds a mixture of two versions, so the engine must not generate.
"""

from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger

from tritonlive.wire.outcomes import Code

from . import loading
from .worker_weights import WorkerError, WorkerWeights

logger = init_logger(__name__)


class StreamedWeights(WorkerWeights):
    """The weights of a worker with one of vLLM's transfer engines, or without one (then no trainer can connect)."""

    def __init__(self, worker: Any) -> None:
        """worker: vLLM's Worker, whose own methods these operations run."""
        super().__init__(worker.vllm_config, worker.model_runner.get_model())
        self._worker = worker

    def connect(self, init_info: dict[str, Any]) -> None:
        if self._worker.weight_transfer_engine is None:
            raise WorkerError(Code.REJECTED, "weight transfer is off in this worker")
        self._worker.init_weight_transfer_engine(init_info)

    def disconnect(self) -> None:
        if self._worker.weight_transfer_engine is not None:
            self._worker.shutdown_weight_transfer_engine()

    def start(self) -> None:
        self.history.current = None  # vLLM moves the model's tensors aside at once
        self._touch(self._worker.start_weight_update)

    def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._touch(lambda: self._worker.update_weights(update_info))

    def prepare(self) -> dict[str, Any]:
        return {"is_unchanged": False, "digest": None}  # the tensors are in the model already

    def load(self, update_id: str, keep: Sequence[str]) -> None:
        self._touch(self._finish)
        self.history.current = update_id

    def adopt(self) -> None:
        raise WorkerError(Code.REJECTED, "an update over this backend is never unchanged")

    def abort(self) -> None:
        """End the reload that vLLM has begun, so that its tensors do not count for the next update."""
        if not self._worker._weight_update_active and self.history.current is not None:
            return
        try:
            loading.end(self.model, self.vllm_config.model_config)
        finally:
            self._worker._weight_update_active = False
            if self._worker.weight_transfer_engine is not None:
                self._worker.weight_transfer_engine.reset_weight_update_target()

    def _finish(self) -> None:
        loading.check_complete(self.model)
        self._worker.finish_weight_update()

    def _touch(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # whatever vLLM's engine, NCCL or the model's loader raises
            logger.exception("weights: an update failed")
            raise WorkerError(Code.TOUCHED, str(error)) from error
