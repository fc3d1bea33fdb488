"""A partial push onto different bases is not the same version: its digest is of all tensors, the base's as well."""

import torch

from sync.transport.worker.memory import HostMemory, MemoryPool
from sync.weights.digest import tensor_digest
from sync.weights.weight_source import ParamMeta
from sync.worker.staged_update import StagedUpdate
from sync.worker.weight_history import WeightHistory, merge


def update(**values: float) -> StagedUpdate:
    tensors = [(name, torch.tensor([value])) for name, value in values.items()]
    return StagedUpdate(tensors, {ParamMeta.of(name, t): tensor_digest(t) for name, t in tensors}, HostMemory(4))


def history(**values: float) -> WeightHistory:
    found = WeightHistory(MemoryPool())
    found.add("base", update(**values))
    found.current = "base"
    return found


def test_ranks_with_different_bases_stage_different_versions() -> None:
    first, second = history(a=1, b=1), history(a=2, b=1)
    part = update(b=3)
    digests = {merge("", part, each.current_entry).digest for each in (first, second)}
    assert len(digests) == 2
    assert merge("", part, first.current_entry).digest == merge("", update(a=1, b=3), None).digest


def test_what_is_added_is_what_was_merged() -> None:
    ranks = history(a=1, b=1)
    part = update(b=3)
    staged = merge("", part, ranks.current_entry).digest
    assert ranks.add("next", part, base=ranks.current_entry).digest == staged
