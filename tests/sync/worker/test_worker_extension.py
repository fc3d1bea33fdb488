"""A worker's answers to weight operations. It never raises.

After one worker's exception vLLM's executor takes old answers for new ones.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig

from sync.worker import worker_weights
from sync.worker.staged_weights import StagedWeights
from sync.worker.worker_extension import OPERATIONS, WeightOperations
from tritonlive.wire.outcomes import Code


class Worker(WeightOperations):
    """vLLM's worker of rank 1 of 2, with a model of one parameter."""

    def __init__(self, folder: Any) -> None:
        self.rank = 1
        self.vllm_config: Any = VllmConfig()
        self.vllm_config.parallel_config.world_size = 2
        self.vllm_config.model_config = SimpleNamespace(model=str(folder), revision=None, dtype=torch.float32)
        self.model = torch.nn.Linear(2, 2, bias=False)
        self.model_runner = SimpleNamespace(get_model=lambda: self.model, reset_lora_state=lambda: None)
        self.weight_transfer_engine: Any = SimpleNamespace(weights=StagedWeights(self.vllm_config, self.model))


@pytest.fixture
def worker(tmp_path) -> Worker:
    return Worker(tmp_path)


@pytest.mark.parametrize("operation", sorted(OPERATIONS - {"load", "restore", "reload"}))
def test_every_operation_answers_with_rank_code_and_report(worker: Worker, operation: str) -> None:
    arguments: dict[str, Any] = {"connect": {"init_info": {}}, "update": {"update_info": {}}}.get(operation, {})
    answer = worker.weight_operation(operation, arguments)
    assert answer["rank"] == 1
    assert Code(answer["code"]) in Code
    assert answer["current"] is None, "nothing has been loaded yet, so nothing is known"
    assert {"kept", "checkpoint", "message"} <= answer.keys()


@pytest.mark.parametrize(
    ("operation", "arguments", "code"),
    [
        ("load", {"update_id": "u1", "keep": []}, Code.REJECTED),
        ("restore", {"update_id": "never seen"}, Code.NOT_HELD),
        ("restore", {"update_id": "checkpoint"}, Code.NOT_HELD),
        ("update", {"update_info": {"names": ["a"]}}, Code.REJECTED),
        ("connect", {"init_info": {"unknown": 1}}, Code.REJECTED),
        ("connect", {"surprise": 1}, Code.FAILED),
        ("no_such_operation", {}, Code.FAILED),
    ],
)
def test_what_it_cannot_do_is_a_code(worker: Worker, operation: str, arguments: dict[str, Any], code: Code) -> None:
    answer = worker.weight_operation(operation, arguments)
    assert answer["code"] == code
    assert answer["message"]


def test_a_load_that_fails_says_that_the_model_is_touched(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(worker_weights, "load", fail)
    monkeypatch.setattr(
        worker_weights,
        "get_model_loader",
        lambda _config: SimpleNamespace(get_all_weights=lambda _config, _model: iter(())),
    )
    answer = worker.weight_operation("reload", {"update_id": "c1"})
    assert (answer["code"], answer["current"]) == (Code.TOUCHED, None)
    assert "no more" in answer["message"]


def test_a_worker_without_weights_answers_too(worker: Worker) -> None:
    worker.weight_transfer_engine = None
    worker.model_runner.get_model = lambda: 1 / 0
    answer = worker.weight_operation("report", {})
    assert (answer["code"], answer["current"], answer["kept"]) == (Code.FAILED, None, [])
