"""Push weights from a trainer into running tritonlive replicas, and get rollouts from them.

with WeightSync("http://127.0.0.1:9000", backend="gloo", control_key=key) as sync:
    report = sync.push(model)
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
    from .adapters import AdapterReport
    from .batches import RolloutBatch, Scores
    from .canary import CanaryReport
    from .report import PushReport
    from .rollouts import Rollouts
    from .sources import StreamSource
    from .weight_source import ParamMeta, WeightSource
    from .weight_sync import WeightSync

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
    "WeightSync": ".weight_sync",
    "PushReport": ".report",
    "CanaryReport": ".canary",
    "AdapterReport": ".adapters",
    "WeightSource": ".weight_source",
    "ParamMeta": ".weight_source",
    "StreamSource": ".sources",
    "Rollouts": ".rollouts",
    "RolloutBatch": ".batches",
    "Scores": ".batches",
}


def __getattr__(name: str) -> Any:
    # vLLM imports this package in each of its processes (plugin.py), and `--help` should not wait for torch.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
