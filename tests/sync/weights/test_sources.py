import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from sync import SourceError
from sync.weights.checkpoint_source import CheckpointSource, checkpoint_files
from sync.weights.dtypes import ITEM_SIZES, SAFETENSORS_DTYPES
from sync.weights.open_source import open_source
from sync.weights.weight_source import ParamMeta


class Tied(torch.nn.Module):
    """A tied model like Hugging Face's: named_parameters() has the shared tensor once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.lm_head = torch.nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("bias", torch.zeros(3))


def test_a_module_has_tied_tensors_and_buffers():
    source = open_source(Tied())
    assert [meta.name for meta in source.metadata()] == ["bias", "embed.weight", "lm_head.weight"]
    assert source.aliases() == {"embed.weight": ["lm_head.weight"], "lm_head.weight": ["embed.weight"]}
    assert not any(tensor.requires_grad for _, tensor in source)


@pytest.mark.parametrize("form", [dict, dict.items, lambda weights: list(weights.items())])
def test_mappings_and_lists_are_held(weights, form):
    source = open_source(form(weights))
    for _ in range(2):
        assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == [
            (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source
        ]


@pytest.mark.parametrize("bad", [3, [1, 2], {"name": 3}, {3: torch.ones(1)}, [("a", torch.ones(1), 3)]])
def test_what_is_no_weights(bad):
    with pytest.raises(SourceError):
        open_source(bad)


def test_a_name_twice():
    with pytest.raises(SourceError, match="yielded twice: a"):
        open_source([("a", torch.ones(1)), ("a", torch.ones(1)), ("b", torch.ones(1))])


def test_a_checkpoint_is_read_as_it_was_written(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert isinstance(source, CheckpointSource)
    read = dict(source)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert {meta.name: meta.shape for meta in source.metadata()} == {n: tuple(t.shape) for n, t in weights.items()}


def test_the_index_says_which_files(tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        save_file({name: torch.ones(1)}, tmp_path / name)
    index = {"weight_map": {"model-1.safetensors": "model-1.safetensors", "model-2.safetensors": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in checkpoint_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(SourceError, match=r"model-2\.safetensors"):
        checkpoint_files(tmp_path)


def test_a_folder_without_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="other formats are pickles"):
        open_source(tmp_path)


def test_a_dtype_torch_does_not_have():
    with pytest.raises(ValueError, match="'bfloat17' is not a dtype"):
        ParamMeta.from_names("a", "bfloat17", [1])
    with pytest.raises(ValueError, match="is not a dtype"):
        ParamMeta.from_names("a", "load", [1])


def test_item_sizes_are_torchs():
    assert {name: getattr(torch, name).itemsize for name in ITEM_SIZES} == ITEM_SIZES
    assert set(SAFETENSORS_DTYPES.values()) <= ITEM_SIZES.keys()


def write_tensor(folder, stored, shape, num_bytes):
    """A safetensors file by hand: safetensors' writer does not take all of its dtypes."""
    header = json.dumps({"t": {"dtype": stored, "shape": shape, "data_offsets": [0, num_bytes]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(num_bytes))


@pytest.mark.parametrize("stored", SAFETENSORS_DTYPES)
def test_every_dtype_of_safetensors_is_read_as_safetensors_reads_it(tmp_path, stored):
    itemsize = ITEM_SIZES[SAFETENSORS_DTYPES[stored]]
    write_tensor(tmp_path, stored, [4, 6], 12 if stored == "F4" else 24 * itemsize)
    source = open_source(tmp_path)
    ((name, tensor),) = source
    assert source.metadata() == [ParamMeta.of(name, tensor)]
    assert source.metadata()[0].num_bytes == tensor.nbytes


@pytest.mark.parametrize("stored", ["F6_E2M3", "F6_E3M2"])
def test_the_dtypes_that_torch_lacks(tmp_path, stored):
    write_tensor(tmp_path, stored, [4, 6], 18)
    with pytest.raises(SourceError, match=f"t: dtype {stored} is not known to torch"):
        open_source(tmp_path).metadata()


def test_a_module_that_zero3_has_partitioned():
    module = torch.nn.Linear(2, 2)
    module.weight.ds_id = 0  # ty: ignore[missing-attribute]
    with pytest.raises(SourceError, match="ZeRO-3; push a WeightSource that gathers them"):
        open_source(module)


def test_shards_that_are_tied():
    """A rank sees only its part of a DTensor's memory."""

    class Shard(torch.Tensor):
        def to_local(self):
            return self.as_subclass(torch.Tensor)

        full_tensor = to_local

    one = torch.ones(2, 2).as_subclass(Shard)
    source = open_source({"a": one, "b": one.detach(), "c": torch.ones(2, 2).as_subclass(Shard)})
    assert source.aliases() == {"a": ["b"], "b": ["a"]}


def test_a_dtype_by_its_name(weights):
    metas = [ParamMeta.of(name, tensor) for name, tensor in weights.items()]
    assert [meta.dtype for meta in metas] == [tensor.dtype for tensor in weights.values()]
    assert [meta.num_bytes for meta in metas] == [tensor.nbytes for tensor in weights.values()]
    assert metas == [ParamMeta.from_names(meta.name, meta.dtype_name, list(meta.shape)) for meta in metas]
