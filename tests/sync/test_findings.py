"""What was found in an update, and what follows from it."""

import torch

from sync.buckets import lay_out
from sync.digest import digest
from sync.findings import BYTES_PER_TENSOR, Findings
from sync.sources import ParamMeta


def test_every_tensor_is_digested_and_looked_at():
    tensors = {"a": torch.ones(4), "b": torch.tensor([1.0, float("nan")]), "c": torch.ones(3, dtype=torch.int64)}
    metas = [ParamMeta.of(name, tensor) for name, tensor in tensors.items()]
    buckets = lay_out(metas, 1)  # each has a bucket of its own
    raw = [tensor.view(torch.uint8) for tensor in tensors.values()]
    findings = Findings.examine(buckets, raw)
    assert findings == Findings([digest(data) for data in raw], [True, False, True])


def test_they_travel_as_bytes():
    findings = Findings([1, 0, 2**64 - 1], [True, False, True])
    assert len(findings.pack()) == 3 * BYTES_PER_TENSOR
    assert Findings.unpack(findings.pack()) == findings
    assert Findings.unpack(Findings([], []).pack()) == Findings([], [])


def test_what_is_broken_or_damaged_is_named():
    names = ["a", "b"]
    assert Findings([1, 2], [True, True]).objection(names, [1, 2]) == ""
    assert Findings([1, 2], [True, True]).objection(names, [1, 3]) == "not the bytes that were sent: b"
    assert Findings([1, 2], [False, True]).objection(names, [1, 3]) == "NaN or Inf in a"
