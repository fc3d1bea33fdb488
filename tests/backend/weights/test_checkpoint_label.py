"""The version label of a checkpoint's weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tritonlive.backend.tensors import Conflict
from tritonlive.backend.weights.checkpoint_label import CheckpointLabel


@pytest.fixture
def model_config(tmp_path: Path) -> Any:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    return SimpleNamespace(model=str(tmp_path), revision=None)


def overwrite(model_config: Any) -> None:
    (Path(model_config.model) / "model.safetensors").write_bytes(b"22")


def test_the_same_files_keep_their_name(model_config: Any) -> None:
    label = CheckpointLabel()
    assert [label.at_start(model_config) for _ in range(2)] == ["default", "default"]
    assert label.at_reload(None, model_config) == "default"
    assert label.at_reload("mine", model_config) == "mine"


def test_other_files_have_another_name(model_config: Any) -> None:
    label = CheckpointLabel()
    label.at_start(model_config)
    overwrite(model_config)
    assert label.at_start(model_config).startswith("default-")
    with pytest.raises(Conflict, match="files have changed"):
        label.at_reload(None, model_config)
    assert label.at_reload("mine", model_config) == "mine"


def test_the_first_engine_s_files_are_the_default_whatever_came_before(model_config: Any) -> None:
    overwrite(model_config)
    assert CheckpointLabel().at_start(model_config) == "default"
