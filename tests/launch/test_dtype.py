import json
from pathlib import Path

import pytest

from tritonlive.launch import StackConfig, dtype, processor


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's folder on a machine that emulates bfloat16."""
    monkeypatch.setattr(processor, "emulates_bfloat16", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": None}))
    return tmp_path


def test_float32_is_chosen_where_bfloat16_is_emulated(model: Path) -> None:
    config = StackConfig(model=str(model), extra_args=("--enforce-eager",))
    chosen, note = dtype.choose(config)
    assert chosen.extra_args == ("--dtype", "float32", "--enforce-eager")
    assert note == "float32 (this processor emulates bfloat16; --dtype bfloat16 keeps it)"


def test_a_hub_id_is_served_in_float32_as_well(model: Path) -> None:
    assert dtype.choose(StackConfig(model="org/name"))[0].extra_args == dtype.FLOAT32


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dtype", "bfloat16"),
        ("--dtype=auto",),
        ("--enforce-eager", "--dtype", "half"),
        ("--quantization", "fp8"),
        ("-q", "awq"),
        ("--quantization=fp8",),
    ],
)
def test_a_caller_who_says_it_is_obeyed(model: Path, arguments: tuple[str, ...]) -> None:
    config = StackConfig(model=str(model), extra_args=arguments)
    assert dtype.choose(config) == (config, None)


@pytest.mark.parametrize(
    ("text", "is_named"),
    [("max-model-len: 128\ndtype: bfloat16\n", True), ("max-model-len: 128\nkv-cache-dtype: fp8\n", False)],
)
@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_the_file_of_config_may_say_it(model: Path, text: str, is_named: bool, form: str) -> None:
    (model / "vllm.yaml").write_text(text)
    config = StackConfig(model=str(model), extra_args=tuple(form.format(model / "vllm.yaml").split()))
    assert (dtype.choose(config)[1] is None) == is_named


@pytest.mark.parametrize(
    "description",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"compression_config": {"format": "int-quantized"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    ],
)
def test_a_quantised_checkpoint_keeps_its_dtype(model: Path, description: dict[str, object]) -> None:
    (model / "config.json").write_text(json.dumps(description))
    config = StackConfig(model=str(model))
    assert dtype.choose(config) == (config, None)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_config_that_cannot_be_read_is_left_for_vllm_to_refuse(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert dtype.choose(StackConfig(model=str(model)))[1] is not None


def test_nothing_is_chosen_where_bfloat16_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "emulates_bfloat16", lambda: False)
    config = StackConfig(model="org/name")
    assert dtype.choose(config) == (config, None)
