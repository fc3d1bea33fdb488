"""What the engine can ask of vLLM's workers about weights (vLLM's `--worker-extension-cls`).

One method that never raises: with several workers vLLM loses count of their answers when one of them does, and reads
the old answers in place of the new ones. So each worker answers with what came of the operation, and the model
(model_repository) decides by all ranks' answers.
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
    """Mixed into vLLM's worker class; a class of your own for `--worker-extension-cls` derives from this one."""

    def weight_operation(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one of OPERATIONS and say what came of it: `rank`, `code` (outcomes.Code), `message`, and the report."""
        code, message, result = Code.OK, "", {}
        worker: Any = self
        parallel = worker.vllm_config.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + worker.rank
        try:
            weights = weights_of(worker)
        except Exception as error:  # nothing is known of this worker's weights then
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
        except Exception as error:  # a fault of ours or of the device: the answer says so, and the count stays right
            logger.exception("weights: %s failed", operation)
            code, message = Code.FAILED, f"{type(error).__name__}: {error}"
        return {"rank": rank, "code": str(code), "message": message} | result | weights.report()


def weights_of(worker: Any) -> WorkerWeights:
    """The worker's weights: a transfer engine of ours has them, else they are made at the first call."""
    if isinstance(staged := getattr(worker.weight_transfer_engine, "weights", None), StagedWeights):
        return staged
    found = worker.__dict__.get("_streamed_weights")
    if found is None:
        found = worker.__dict__["_streamed_weights"] = StreamedWeights(worker)
    return found
