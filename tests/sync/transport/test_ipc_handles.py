import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.storage import TypedStorage

from sync.transport.ipc_handles import decode_handles, encode_handles

# As torch.multiprocessing.reductions.reduce_tensor makes it for a CUDA tensor.
ARGUMENTS = (
    torch.Tensor,
    torch.Size([4, 2]),
    (2, 1),
    8,
    TypedStorage,
    torch.bfloat16,
    0,
    b"memory\x00handle",
    4096,
    512,
    False,
    b"counter",
    3,
    b"event",
    True,
)


@pytest.mark.parametrize("handles", [{"GPU-1": ARGUMENTS}, [{"GPU-1": ARGUMENTS}, {"GPU-1": ARGUMENTS}]])
def test_there_and_back_through_json(handles):
    assert decode_handles(json.loads(json.dumps(encode_handles(handles)))) == handles


def test_the_two_classes_are_not_on_the_wire():
    wire = json.dumps(encode_handles({"GPU-1": ARGUMENTS}))
    assert "Storage" not in wire
    assert "Tensor" not in wire


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, [1.5]), (0, "44"), (2, True), (3, "load"), (3, 7), (5, "no base64!"), (5, [1]), (8, 1), (12, None)],
)
def test_anything_else_is_refused(field, value):
    wire = encode_handles({"GPU-1": ARGUMENTS})
    wire["GPU-1"][field] = value
    with pytest.raises(ValueError, match="ipc_handles"):
        decode_handles(wire)


@pytest.mark.parametrize("wire", [None, "gASVCg==", {"GPU-1": []}, [[]], {"GPU-1": "abc"}])
def test_other_shapes_are_refused(wire):
    with pytest.raises(ValueError, match="ipc_handles"):
        decode_handles(wire)


def test_what_vllms_trainer_sends_is_what_the_worker_takes():
    """Everything but the GPU: vLLM's fields, packed as `vllm_trainer` has them, through our control client's JSON."""
    from dataclasses import asdict

    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo

    from sync.push.vllm_trainer import EngineClient, JsonHandlesClient
    from sync.worker.ipc_worker import CudaIpcWeightTransferEngine

    sent = IPCWeightTransferUpdateInfo(
        names=["a"], dtype_names=["bfloat16"], shapes=[[4, 2]], ipc_handles={"GPU-1": ARGUMENTS}, tensor_sizes=[16]
    )
    calls: list[dict] = []
    update: Any = SimpleNamespace(update_weights=lambda info, on_failure: calls.append(info))
    client = EngineClient(update)
    client.begin(update)
    JsonHandlesClient(client).update_weights(asdict(sent))
    engine = CudaIpcWeightTransferEngine.__new__(CudaIpcWeightTransferEngine)
    assert engine.parse_update_info(json.loads(json.dumps(calls[0]))) == sent


def test_a_pickle_is_refused():
    from sync.worker.ipc_worker import CudaIpcWeightTransferEngine

    engine = CudaIpcWeightTransferEngine.__new__(CudaIpcWeightTransferEngine)
    fields = {"names": [], "dtype_names": [], "shapes": [], "ipc_handles_pickled": "gASVCg=="}
    with pytest.raises(ValueError, match="pickle is not accepted"):
        engine.parse_update_info(fields)
