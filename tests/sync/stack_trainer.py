"""A trainer process: stack_trainer.py TARGET CHECKPOINT MODE [LEASE].

It pushes when told to on its standard input, is killed at a given point of a push, or stays connected.
"""

import os
import signal
import sys
from typing import Any

from sync import WeightSync
from sync.push.fleet_update import FleetUpdate


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(target: str, checkpoint: str, mode: str, lease: str = "30") -> None:
    if mode == "after-init":
        FleetUpdate.start_weight_update = die
    elif mode == "before-commit":
        FleetUpdate.finish_weight_update = die
    progress = die if mode in ("mid-transfer", "mid-broadcast") else None
    is_shared = mode != "mid-broadcast"
    with WeightSync(target, backend="gloo", timeout=30, lease=float(lease), shared_memory=is_shared) as sync:
        if mode == "on-command":
            sync.check(checkpoint)  # everything is imported and answers
            print("ready", flush=True)  # noqa: T201 - read by the test
            sys.stdin.readline()
        report = sync.push(checkpoint, mode, progress=progress)
        if mode == "connected":
            print("connected", flush=True)  # noqa: T201 - read by the test
            sys.stdin.readline()
        print(report)  # noqa: T201 - shown when the test fails


if __name__ == "__main__":
    main(*sys.argv[1:])
