"""One rank of a trainer whose model is sharded by FSDP2, over gloo: ADDRESS KEY MODE; rank and store from torchrun's
variables. Prints one JSON object: how each push ended, and how long it took.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from sync import PushReport, SyncError, WeightSync
from sync.push.trainer_ranks import TrainerRanks
from sync.weights.sources import TensorSource

TIMEOUT_S = 8.0
RANK_TIMEOUT_S = 1.5


class Model(torch.nn.Module):
    """Parameters whose rows do not divide by two are sharded unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(65, 16)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))


def sharded_model() -> Model:
    torch.manual_seed(0)
    model = Model()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


class Breaking(TensorSource):
    """Ends, at rank 1, in the middle: by an error, or with the process."""

    is_collective = True
    mode = ""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number, pair in enumerate(super().__iter__()):
            if number == 3 and distributed.get_rank() == 1:
                if self.mode == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError("no memory for a gathered tensor")
            yield pair


def push(sync: WeightSync, ranks: TrainerRanks, weights: Any, version: str) -> dict[str, Any]:
    began = time.monotonic()
    try:
        sync._ranks = ranks
        report = sync.push(weights, version)
    except SyncError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    else:
        assert isinstance(report, PushReport)
        outcome = {"version": report.version, "tensors": report.num_tensors, "targets": report.targets}
    return outcome | {"seconds": time.monotonic() - began}


def main(address: str, key: str, mode: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = sharded_model()
    ranks = TrainerRanks.current(rank_timeout_s=RANK_TIMEOUT_S)
    outcomes = []
    with WeightSync(address, backend="gloo", control_key=key, timeout=TIMEOUT_S) as sync:
        if mode == "together":
            for number in (1, 2):
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(1.0)
                outcomes.append(push(sync, ranks, model, f"step-{number}"))
        elif mode in ("alone", "without-0"):
            if rank == (0 if mode == "alone" else 1):
                outcomes.append(push(sync, ranks, model, "alone"))
            else:
                time.sleep(RANK_TIMEOUT_S + 0.7)
            # All ranks come to the next one.
            outcomes.append(push(sync, ranks, model, "together"))
        elif mode == "nan":
            bias = model.get_parameter("layers.0.bias").data
            bias.fill_(float("nan"))
            outcomes.append(push(sync, ranks, model, "nan"))
            bias.fill_(0.0)
            outcomes.append(push(sync, ranks, model, "healed"))
        elif mode == "mismatch":
            outcomes.append(push(sync, ranks, {**model.state_dict(), "more": torch.ones(1)}, "mismatch"))
        elif mode in ("error", "kill"):
            source = Breaking(model.state_dict())
            source.mode = mode
            outcomes.append(push(sync, ranks, source, mode))
    print(json.dumps(outcomes), flush=True)  # noqa: T201 - read by the test
    # A rank may still be in a collective that another one left: no tidy end is possible then.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
