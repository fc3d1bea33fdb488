"""tritonlive/backend/model.py and config.pbtxt."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig  # ty: ignore[missing-module-member] (made at import)

from tritonlive.backend import model
from tritonlive.backend.generation.native_request import RETURNS

MODEL_FOLDER = Path(__file__).parents[2] / "model_repository" / "llm"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return text_format.Parse((MODEL_FOLDER / "config.pbtxt").read_text(), ModelConfig())


def test_the_contract_parses_and_batches(config: ModelConfig) -> None:
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert config.model_transaction_policy.decoupled


def test_every_input_is_optional_since_a_request_is_one_of_four_kinds(config: ModelConfig) -> None:
    assert all(tensor.optional for tensor in config.input)


def test_tensors_of_varying_size_may_share_a_batch(config: ModelConfig) -> None:
    assert all(tensor.allow_ragged_batch for tensor in config.input if -1 in tensor.dims)


def test_every_return_flag_has_its_tensor(config: ModelConfig) -> None:
    inputs, outputs = {tensor.name for tensor in config.input}, {tensor.name for tensor in config.output}
    for name in RETURNS:
        assert f"return_{name}" in inputs
        assert name in outputs


@pytest.mark.parametrize("groups", [[{"count": 2}], [{"count": 1}, {"count": 1}], [{"count": 1, "gpus": [0, 1]}]])
def test_a_second_instance_is_refused(groups: list[dict[str, object]]) -> None:
    with pytest.raises(model.pb_utils.TritonModelException, match="set count to 1"):
        model.check_single_instance({"name": "llm", "instance_group": groups})


@pytest.mark.parametrize("runs", [True, False])
def test_the_model_is_ready_while_an_engine_runs(*, runs: bool) -> None:
    served = model.TritonPythonModel()
    served._service = SimpleNamespace(is_ready=runs)  # ty: ignore[invalid-assignment]
    assert served.is_ready() is runs
