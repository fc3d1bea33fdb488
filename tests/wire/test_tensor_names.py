"""tritonlive/wire/tensor_names.py and model_repository/llm/config.pbtxt name the same tensors."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tritonlive.wire import tensor_names
from tritonlive.wire.limits import MAX_BATCH
from tritonlive.wire.tensor_names import FRONT_END_INPUTS, FRONT_END_OUTPUTS, INPUTS, MODEL, OUTPUTS, missing_tensors

CONFIG = Path(__file__).parents[2] / "model_repository/llm/config.pbtxt"


@pytest.fixture(scope="module")
def config():
    empty = model_config_pb2.ModelConfig()  # ty: ignore[missing-attribute] - generated
    return text_format.Parse(CONFIG.read_text(), empty)


def test_the_contract_names_the_same_tensors(config) -> None:
    assert config.name == MODEL == CONFIG.parent.name
    assert {tensor.name for tensor in config.input} == INPUTS
    assert {tensor.name for tensor in config.output} == OUTPUTS
    assert config.max_batch_size >= MAX_BATCH


def test_every_constant_is_listed() -> None:
    """Each name is its constant's in lower case, so that it is easy to find."""
    constants = {name: value for name, value in vars(tensor_names).items() if isinstance(value, str) and name.isupper()}
    del constants["MODEL"]
    assert constants == {value.upper(): value for value in INPUTS | OUTPUTS}


def test_what_a_front_end_needs() -> None:
    assert FRONT_END_INPUTS < INPUTS
    assert FRONT_END_OUTPUTS < OUTPUTS
    assert missing_tensors(INPUTS, OUTPUTS) == []
    assert missing_tensors(INPUTS - {"engine_abort"}, ()) == sorted({"engine_abort"} | FRONT_END_OUTPUTS)
