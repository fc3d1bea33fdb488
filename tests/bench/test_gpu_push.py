"""The parts that need no GPU: the checkpoint and the table."""

import torch

from bench.gpu_push import Row, table
from bench.random_checkpoint import (
    SERVED_SIZES,
    SIZES,
    TOKENIZER_VOCABULARY,
    Size,
    random_checkpoint,
    shards,
    write_config,
)
from sync.weights.checkpoint_source import CheckpointSource

TINY = Size(32, 64, 2, 4, 2, 128, tie_word_embeddings=True)


def test_a_checkpoint_has_what_the_model_has(tmp_path):
    from transformers import Qwen2ForCausalLM

    (tmp_path / "tokenizer.json").write_text("{}")
    folder = random_checkpoint(tmp_path / "random", TINY, tmp_path)
    assert (folder / "tokenizer.json").read_text() == "{}"
    tensors = dict(CheckpointSource(folder))
    assert "lm_head.weight" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    written = (folder / "model-00001.safetensors").stat().st_mtime_ns
    assert random_checkpoint(folder, TINY, tmp_path) == folder
    assert (folder / "model-00001.safetensors").stat().st_mtime_ns == written


def test_files_hold_no_more_than_they_may():
    shapes = {str(number): torch.Size([100]) for number in range(5)}
    assert [list(tensors) for tensors in shards(shapes, 400)] == [["0", "1"], ["2", "3"], ["4"]]


def test_sizes_are_what_they_are_called():
    def parameters(size: Size) -> int:
        head = size.hidden_size // size.num_attention_heads
        attention = size.hidden_size * (2 * size.hidden_size + 2 * size.num_key_value_heads * head)
        layer = attention + 3 * size.hidden_size * size.intermediate_size
        embeddings = size.vocab_size * size.hidden_size * (1 if size.tie_word_embeddings else 2)
        return size.num_hidden_layers * layer + embeddings

    assert 0.45e9 < parameters(SIZES["0.5b"]) < 0.55e9
    assert 7e9 < parameters(SIZES["7b"]) < 8e9


def test_the_table():
    rows = [
        Row("7b", "nccl", 15_000_000_000, 1.5, 0.25),
        Row("7b", "ipc", 15_000_000_000, problem="no GPU"),
        Row("7b", "broadcast + load", 15_000_000_000, 1.0),
    ]
    assert table(rows).splitlines() == [
        "| model | way | seconds | GB/s | pause, s |",
        "| --- | --- | --- | --- | --- |",
        "| 7b | nccl | 1.500 | 10.0 | 0.250 |",
        "| 7b | ipc | no GPU |  |  |",
        "| 7b | broadcast + load | 1.000 | 15.0 | - |",
    ]


def test_a_model_without_weights_has_the_tokenizers_vocabulary(tmp_path):
    from transformers import AutoConfig

    (tmp_path / "tokenizer.json").write_text("{}")
    write_config(tmp_path / "dummy", SERVED_SIZES["0.6b"], tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / "dummy")
    assert (config.vocab_size, config.hidden_size) == (TOKENIZER_VOCABULARY, 1024)
    assert sorted(path.name for path in (tmp_path / "dummy").iterdir()) == ["config.json", "tokenizer.json"]
