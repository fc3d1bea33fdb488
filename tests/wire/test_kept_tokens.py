"""Counts of kept tokens: the front end reads what the model writes, and vLLM's own reader ignores them."""

from typing import Any

from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend import vllm_seam as front_end
from tritonlive.backend.vllm_seam import messages as model
from tritonlive.wire.kept_tokens import KeptStep, KeptTokens

KEPT = KeptTokens([KeptStep(2.0, 3, {0.5: 2, 1.0: 1})], {"a": (2.0, 3)})


def encoded() -> Any:
    step = EngineCoreOutputs(timestamp=3.0, weight_version="v1")
    (frame,) = MsgpackEncoder(size_threshold=1 << 62).encode([model.add_kept_tokens(step, KEPT), step])
    return frame


def test_the_front_end_reads_what_the_model_writes() -> None:
    relayed, plain = MsgpackDecoder(list[front_end.RelayedOutputs]).decode(encoded())
    assert (relayed.kept, relayed.timestamp, relayed.weight_version) == (KEPT, 3.0, "v1")
    assert (plain.kept, plain.timestamp, plain.weight_version) == (None, 3.0, "v1")


def test_a_reader_of_vllms_struct_ignores_it() -> None:
    for step in MsgpackDecoder(list[EngineCoreOutputs]).decode(encoded()):
        assert (step.timestamp, step.weight_version) == (3.0, "v1")
