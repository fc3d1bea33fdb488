"""tritonlive/wire/tensor_names.py and model_repository/llm/config.pbtxt name the same tensors."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tritonlive.wire import tensor_names
from tritonlive.wire.limits import MAX_BATCH
from tritonlive.wire.tensor_names import (
    FRONT_END_INPUTS,
    FRONT_END_OUTPUTS,
    INPUTS,
    MODEL,
    OUTPUTS,
    UNARY_MODEL,
    VLLM_MODEL,
    missing_tensors,
)

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CONFIG = REPOSITORY / "llm/config.pbtxt"


def parse(path: Path):
    empty = model_config_pb2.ModelConfig()  # ty: ignore[missing-attribute] - generated
    return text_format.Parse(path.read_text(), empty)


@pytest.fixture(scope="module")
def config():
    return parse(CONFIG)


def test_the_contract_names_the_same_tensors(config) -> None:
    assert config.name == MODEL == CONFIG.parent.name
    assert {tensor.name for tensor in config.input} == INPUTS
    assert {tensor.name for tensor in config.output} == OUTPUTS
    assert config.max_batch_size >= MAX_BATCH


@pytest.mark.parametrize(("name", "decoupled"), [(VLLM_MODEL, True), (UNARY_MODEL, False)])
def test_the_models_without_a_batch_dimension_have_the_native_tensors(config, name: str, *, decoupled: bool) -> None:
    unbatched = parse(REPOSITORY / name / "config.pbtxt")
    assert unbatched.name == name
    assert unbatched.max_batch_size == 0
    assert unbatched.model_transaction_policy.decoupled is decoupled
    assert unbatched.parameters["ENGINE_MODEL"].string_value == MODEL
    assert all(tensor.optional for tensor in unbatched.input)

    def shapes(tensors):
        others = ("control_", "engine_")
        return {each.name: (each.data_type, list(each.dims)) for each in tensors if not each.name.startswith(others)}

    assert shapes(unbatched.input) == shapes(config.input)
    assert shapes(unbatched.output) == shapes(config.output)


def test_every_constant_is_listed() -> None:
    """Each name is its constant's in lower case, so that it is easy to find."""
    constants = {name: value for name, value in vars(tensor_names).items() if isinstance(value, str) and name.isupper()}
    constants = {name: value for name, value in constants.items() if not name.endswith("MODEL")}
    assert constants == {value.upper(): value for value in INPUTS | OUTPUTS}


def test_what_a_front_end_needs() -> None:
    assert FRONT_END_INPUTS < INPUTS
    assert FRONT_END_OUTPUTS < OUTPUTS
    assert missing_tensors(INPUTS, OUTPUTS) == []
    assert missing_tensors(INPUTS - {"engine_abort"}, ()) == sorted({"engine_abort"} | FRONT_END_OUTPUTS)
