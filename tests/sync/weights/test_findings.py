"""Findings of an update, and the resulting rejection."""

import json

from sync.weights.findings import BYTES_PER_TENSOR, Findings
from tritonlive.wire.rejection import RejectCode, Rejection


def test_they_travel_as_bytes():
    findings = Findings([1, 0, 2**64 - 1], [True, False, True])
    assert len(findings.pack()) == 3 * BYTES_PER_TENSOR
    assert Findings.unpack(findings.pack()) == findings
    assert Findings.unpack(Findings([], []).pack()) == Findings([], [])


def test_what_is_broken_or_damaged_is_named():
    names = ["a", "b"]
    assert Findings([1, 2], [True, True]).rejection(names, [1, 2]) is None
    damaged = Findings([1, 2], [True, True]).rejection(names, [1, 3])
    assert damaged == Rejection(RejectCode.DAMAGED, "not the bytes that were sent: b", ["b"])
    broken = Findings([1, 2], [False, True]).rejection(names, [1, 3])
    assert broken == Rejection(RejectCode.NOT_FINITE, "NaN or Inf in a", ["a"])


def test_a_rejection_travels_as_fields():
    rejection = Rejection(RejectCode.NOT_FINITE, "NaN or Inf in a", ("a",))
    assert Rejection.from_fields(json.loads(json.dumps(rejection.to_fields()))) == rejection
