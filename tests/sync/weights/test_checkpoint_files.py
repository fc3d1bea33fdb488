"""Whether a checkpoint's files are still those that were loaded."""

import os
from types import SimpleNamespace

from sync.weights.checkpoint_files import CheckpointFiles


def files(folder, revision=None):
    return CheckpointFiles.find(SimpleNamespace(model=str(folder), revision=revision))


def test_a_fingerprint_lasts_as_long_as_the_files(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = files(tmp_path).fingerprint()
    (tmp_path / "config.json").write_text("{}")  # no weights
    assert files(tmp_path).fingerprint() == before
    os.utime(weights, ns=(1, 1))
    assert files(tmp_path).fingerprint() != before


def test_a_file_that_is_replaced_by_one_just_like_it_is_noticed(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    os.utime(weights, ns=(1, 1))
    before = files(tmp_path).fingerprint()
    new = tmp_path / "new"
    new.write_bytes(b"two")
    os.utime(new, ns=(1, 1))
    new.rename(weights)
    assert files(tmp_path).fingerprint() != before


def test_without_weights_there_is_none(tmp_path):
    assert files(tmp_path).fingerprint() is None
    assert files(tmp_path / "gone").fingerprint() is None


def test_a_model_that_is_one_file(tmp_path):
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"one")
    assert files(weights).folder == tmp_path
    assert files(weights).fingerprint() is not None
