"""Push weights from a trainer into running tritonlive replicas, and get rollouts from them.

with WeightSync("http://127.0.0.1:9000", backend="gloo", control_key=key) as client:
    report = client.push(model)
with Rollouts("grpc://127.0.0.1:8001") as rollouts:
    batch = rollouts.generate(prompts, n=8, max_tokens=64)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ChangedError,
    CheckError,
    CommitError,
    ConflictError,
    ControlError,
    DeadlineError,
    InvalidError,
    RefusedError,
    RejectedError,
    SourceError,
    SyncError,
    TargetError,
    TransferError,
    UnavailableError,
    UnknownOutcomeError,
    VerifyError,
)

if TYPE_CHECKING:
    from .adapters.adapters import AdapterReport
    from .push.logprob_check import CanaryReport
    from .push.report import PushReport
    from .push.weight_sync import WeightSync
    from .rollouts.batches import RolloutBatch, Scores
    from .rollouts.rollouts import Rollouts
    from .weights.sources import StreamSource
    from .weights.weight_source import ParamMeta, WeightSource

__all__ = [
    "WeightSync",
    "PushReport",
    "WeightSource",
    "StreamSource",
    "ParamMeta",
    "CanaryReport",
    "AdapterReport",
    "Rollouts",
    "RolloutBatch",
    "Scores",
    "SyncError",
    "TargetError",
    "SourceError",
    "ControlError",
    "RefusedError",
    "ConflictError",
    "InvalidError",
    "UnavailableError",
    "DeadlineError",
    "CheckError",
    "TransferError",
    "RejectedError",
    "ChangedError",
    "VerifyError",
    "CommitError",
    "UnknownOutcomeError",
]

_LAZY = {
    "WeightSync": ".push.weight_sync",
    "PushReport": ".push.report",
    "CanaryReport": ".push.logprob_check",
    "AdapterReport": ".adapters.adapters",
    "WeightSource": ".weights.weight_source",
    "ParamMeta": ".weights.weight_source",
    "StreamSource": ".weights.sources",
    "Rollouts": ".rollouts.rollouts",
    "RolloutBatch": ".rollouts.batches",
    "Scores": ".rollouts.batches",
}


def __getattr__(name: str) -> Any:
    # vLLM imports this package in each of its processes (plugin.py), and `--help` should not wait for torch.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
