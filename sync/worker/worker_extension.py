"""The weight operations of vLLM's workers (vLLM's `--worker-extension-cls`).

They go through one method that never raises: when one of several workers raises, vLLM miscounts their answers, and
later reads old answers as new ones. So each worker returns the outcome of the operation, and the model
(tritonlive/backend) decides by the answers of all ranks.
"""

from typing import Any

from vllm.config import set_current_vllm_config
from vllm.logger import init_logger

from tritonlive.wire.outcomes import Code

from .staged_weights import StagedWeights
from .streamed_weights import StreamedWeights
from .worker_weights import WorkerError, WorkerWeights

logger = init_logger(__name__)

OPERATIONS = frozenset(
    {
        *("connect", "disconnect", "start", "update", "prepare", "load", "adopt", "abort"),
        *("restore", "reload", "reset", "forget", "report", "parameters"),
    }
)


class WeightOperations:
    """Mixed into vLLM's worker class. Derive your own class for `--worker-extension-cls` from this one."""

    def weight_operation(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one of OPERATIONS. Returns `rank`, `code` (outcomes.Code), `message`, its result, and the report."""
        code, message, result = Code.OK, "", {}
        worker: Any = self
        parallel = worker.vllm_config.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + worker.rank
        try:
            weights = weights_of(worker)
        except Exception as error:  # this worker's weights are unknown
            logger.exception("weights: rank %d has none", rank)
            checkpoint = {"id": None, "fingerprint": None, "is_loadable": False}
            nothing = {"current": None, "kept": [], "checkpoint": checkpoint}
            return {"rank": rank, "code": str(Code.FAILED), "message": str(error)} | nothing
        try:
            if operation not in OPERATIONS:
                raise WorkerError(Code.FAILED, f"unknown weight operation {operation!r}")
            with set_current_vllm_config(worker.vllm_config):
                result = getattr(weights, operation)(**arguments) or {}
                if operation in ("load", "restore", "reload"):
                    worker.model_runner.reset_lora_state()
        except WorkerError as error:
            code, message = error.code, str(error)
        except Exception as error:  # a bug, or the device: the answer reports it
            logger.exception("weights: %s failed", operation)
            code, message = Code.FAILED, f"{type(error).__name__}: {error}"
        return {"rank": rank, "code": str(code), "message": message} | result | weights.report()


def weights_of(worker: Any) -> WorkerWeights:
    """The worker's weights: those of our transfer engine, otherwise an object made at the first call."""
    if isinstance(staged := getattr(worker.weight_transfer_engine, "weights", None), StagedWeights):
        return staged
    found = worker.__dict__.get("_streamed_weights")
    if found is None:
        found = worker.__dict__["_streamed_weights"] = StreamedWeights(worker)
    return found
