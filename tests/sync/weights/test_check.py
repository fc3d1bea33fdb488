import pytest
import torch
from safetensors.torch import save_file

from sync import CheckError, InvalidError, SourceError
from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source
from sync.weights.sources import StreamSource
from sync.weights.weight_source import ParamMeta, WeightSource

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def served(weights, tied=(), unloaded=()):
    return ServedModel("replica", {n: ParamMeta.of(n, t) for n, t in weights.items()}, tied, unloaded)


def test_all_mismatches_are_listed(weights):
    pushed = dict(weights)
    del pushed["model.layers.0.bias"]
    pushed["extra"] = torch.ones(2)
    pushed["model.layers.0.weight"] = torch.ones(16, 17).bfloat16()
    pushed["model.layers.0.counts"] = torch.ones(7)
    with pytest.raises(CheckError) as caught:
        fit(open_source(pushed), served(weights))
    assert caught.value.mismatches == (
        "model.layers.0.weight: shape is [16, 17], served is [16, 16]",
        "model.layers.0.counts: dtype float32 cannot be cast to int64",
        "extra: not a tensor of the served checkpoint",
        "model.layers.0.bias: missing, served is float32[16]",
    )
    assert all(mismatch in str(caught.value) for mismatch in caught.value.mismatches)


def test_floats_are_cast_to_the_served_dtype(weights):
    pushed = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    fitted = fit(open_source(pushed), served(weights))
    assert {name: tensor.dtype for name, tensor in fitted} == {name: tensor.dtype for name, tensor in weights.items()}
    assert fitted.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    assert [(m.name, m.dtype, m.shape) for m in fitted.metadata()] == [(n, t.dtype, tuple(t.shape)) for n, t in fitted]


def test_float8_is_not_cast(weights):
    pushed = weights | {"model.layers.0.bias": weights["model.layers.0.bias"].to(torch.float8_e4m3fn)}
    with pytest.raises(CheckError, match="float8_e4m3fn cannot be cast to float32"):
        fit(open_source(pushed), served(weights))


class TestTiedHeads:
    def test_may_be_there_or_not(self, weights):
        weights[HEAD] = weights[EMBEDDING].clone()  # equal, but not the same memory
        without = {name: tensor for name, tensor in weights.items() if name != HEAD}
        cases = [
            (weights, served(weights, [HEAD])),  # in the served checkpoint and in the push
            (without, served(weights, [HEAD])),  # in the served checkpoint only
            (weights, served(without, [HEAD])),  # in the push only
            (without, served(without, [HEAD])),
        ]
        for pushed, model in cases:
            for source in (open_source(pushed), StreamSource(pushed.items())):
                fitted = fit(source, model)
                assert HEAD not in {meta.name for meta in fitted.metadata()}
                assert {name for name, _ in fitted} == without.keys()

    @pytest.mark.parametrize("order", [(HEAD, EMBEDDING), (EMBEDDING, HEAD)])
    def test_one_that_is_no_longer_tied_is_refused_when_both_have_passed(self, weights, tmp_path, order):
        """The replica would answer with the embedding in its place."""
        ordered = {name: weights[name] for name in order} | weights
        save_file(weights, tmp_path / "model.safetensors")
        model = served(weights, [HEAD])
        for source in (open_source(ordered), StreamSource(ordered.items()), open_source(tmp_path)):
            fitted = fit(source, model)
            with pytest.raises(SourceError, match=r"lm_head\.weight: tied to model\.embed_tokens\.weight .* differs"):
                list(fitted)

    def test_one_buffer_for_both_is_no_tie(self, weights):
        """An exporter's buffer holds the head when the head passes: its bytes of then are compared."""
        buffer = torch.empty_like(weights[EMBEDDING])

        def pairs():
            for name, tensor in weights.items():
                if name in (HEAD, EMBEDDING):
                    yield name, buffer.copy_(tensor)
                else:
                    yield name, tensor

        with pytest.raises(SourceError, match="tied to"):
            list(fit(open_source(pairs()), served(weights, [HEAD])))

    def test_dtypes_are_the_served_ones(self, weights):
        wide = torch.randn(64, 16)
        pushed = weights | {EMBEDDING: wide.bfloat16(), HEAD: wide}
        assert len(list(fit(open_source(pushed), served(weights, [HEAD])))) == len(weights) - 1


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(4, 2)
        self.lm_head = torch.nn.Linear(2, 4, bias=False)
        self.lm_head.weight = self.embed.weight


class TestSharedMemory:
    def test_a_module_of_one_tensor_under_two_names_fills_both(self):
        module = Tied()
        fitted = fit(open_source(module), served(module.state_dict()))
        assert [name for name, _ in fitted] == ["embed.weight", "lm_head.weight"]

    def test_two_names_of_a_mapping_are_refused(self, weights):
        buffer = torch.empty(4)
        pairs = [(f"layers.{i}.w", buffer.fill_(i)) for i in range(3)]
        with pytest.raises(
            CheckError, match=r"layers\.0\.w, layers\.1\.w: share their memory.*push the module"
        ) as caught:
            fit(open_source(pairs), served(dict(pairs)))
        assert len(caught.value.mismatches) == 2

    def test_views_that_overlap_are_refused_and_neighbours_are_not(self):
        flat = torch.arange(8.0)
        apart = {"a": flat[:4], "b": flat[4:]}
        fit(open_source(apart), served(apart))
        across = {"a": flat[:5], "b": flat[4:]}
        with pytest.raises(CheckError, match="a, b: share their memory"):
            fit(open_source(across), served(across))
        inside = {"a": flat.view(2, 4), "b": flat[:4]}
        with pytest.raises(CheckError, match=r"(a, b|b, a): share their memory"):
            fit(open_source(inside), served(inside))

    def test_views_with_gaps(self):
        table = torch.arange(16.0).view(4, 4)
        columns = {"a": table[:, :2], "b": table[:, 2:]}
        fit(open_source(columns), served(columns))
        same = {"a": table.T, "b": table.T}
        with pytest.raises(CheckError, match="a, b: share their memory"):
            fit(open_source(same), served(same))

    def test_two_names_that_are_sent_beside_a_tied_head_of_the_same_memory(self, weights):
        pushed = weights | {HEAD: weights[EMBEDDING], "model.layers.0.weight": weights[EMBEDDING][:16]}
        with pytest.raises(CheckError, match=r"model\.layers\.0\.weight, model\.embed_tokens\.weight: share"):
            fit(open_source(pushed), served(weights, [HEAD]))

    def test_a_tied_head_and_a_second_name_are_left_out(self, weights):
        pushed = weights | {HEAD: weights[EMBEDDING], "model.decoder.embed_tokens.weight": weights[EMBEDDING]}
        fitted = fit(open_source(pushed), served(weights, [HEAD]))
        assert {meta.name for meta in fitted.metadata()} == weights.keys() - {HEAD}
        assert len(list(fitted)) == len(weights) - 1


class TestWhatTheModelLoads:
    MTP = "mtp.layers.0.weight"

    def test_a_tensor_it_does_not_load_may_be_there_or_not_and_is_not_sent(self, weights):
        stored = weights | {self.MTP: torch.ones(4, 4)}
        model = served(stored, unloaded=[self.MTP])
        for pushed in (weights, stored, stored | {self.MTP: torch.ones(5)}):
            for source in (open_source(pushed), StreamSource(pushed.items())):
                fitted = fit(source, model)
                assert not fitted.is_partial
                assert {name for name, _ in fitted} == weights.keys()

    def test_a_source_of_ones_own_with_wrapped_names(self, weights):
        stored = weights | {self.MTP: torch.ones(4, 4)}
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in stored.items()}
        fitted = fit(Lying(wrapped, list(wrapped.items())), served(stored, unloaded=[self.MTP]))
        assert {name for name, _ in fitted} == weights.keys()

    def test_a_subset_on_purpose(self, weights):
        part = {"model.layers.0.bias": weights["model.layers.0.bias"]}
        with pytest.raises(CheckError, match="missing"):
            fit(open_source(part), served(weights))
        fitted = fit(open_source(part), served(weights, tied=[HEAD]), partial=True)
        assert fitted.is_partial
        assert fitted.missing == [name for name in weights if name not in part and name != HEAD]
        assert [name for name, _ in fitted] == list(part)
        assert not fit(open_source(weights), served(weights), partial=True).is_partial

    def test_a_subset_of_nothing(self, weights):
        for source in ({}, {HEAD: weights[HEAD]}):
            with pytest.raises(CheckError, match="none of the tensors"):
                fit(open_source(source), served(weights, tied=[HEAD]), partial=True)
        with pytest.raises(CheckError, match="extra: not a tensor"):
            fit(open_source({"extra": torch.ones(1)}), served(weights), partial=True)
        with pytest.raises(SourceError, match="partial: a stream's names are not known"):
            fit(StreamSource(weights.items()), served(weights), partial=True)

    def test_an_answer(self, weights):
        listed = [
            {"name": "a", "dtype": "float8_e8m0fnu", "shape": [2], "loaded": True},
            {"name": "b", "dtype": "float32", "shape": [], "loaded": False},
            {"name": "c", "dtype": "float32", "shape": []},
        ]
        model = ServedModel.from_answer("replica", {"parameters": listed, "tied": ["h"], "quantization": "fp8"})
        assert model.required == [ParamMeta("a", "float8_e8m0fnu", (2,)), ParamMeta("c", "float32", ())]
        assert (model.tied, model.unloaded, model.quantization) == ({"h"}, {"b"}, "fp8")
        with pytest.raises(InvalidError, match="not known there: no safetensors"):
            ServedModel.from_answer("replica", {"parameters": None, "reason": "no safetensors"})


class TestQuantisedCheckpoints:
    @pytest.mark.parametrize(
        "stored",
        [
            {"q.weight": torch.ones(4, 4, dtype=torch.int8), "q.weight_scale": torch.ones(4, 1)},
            {"q.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "q.weight_scale_inv": torch.ones(1, 1)},
            {"q.weight_packed": torch.ones(4, 1, dtype=torch.int32), "q.weight_scale": torch.ones(4, 1)},
            {"q.qweight": torch.ones(4, 1, dtype=torch.int32), "q.qzeros": torch.ones(1, 1, dtype=torch.int32)},
        ],
    )
    def test_bfloat16_is_refused_with_what_helps(self, stored):
        model = served(stored)
        model.quantization = "awq"
        with pytest.raises(CheckError) as caught:
            fit(open_source({"q.weight": torch.ones(4, 4).bfloat16()}), model)
        assert caught.value.mismatches[0].startswith("the served checkpoint stores quantised tensors (awq: q.")
        assert caught.value.mismatches[0].endswith("with --quantization fp8_per_tensor, which vLLM quantises at load")
        assert len(list(fit(open_source(stored), model))) == len(stored)

    def test_no_advice_for_other_checkpoints(self, weights):
        with pytest.raises(CheckError) as caught:
            fit(open_source({"extra": torch.ones(1)}), served(weights))
        assert not any("quantised" in line for line in caught.value.mismatches)


class CountedShard(torch.Tensor):
    """Counts gathers, as a DTensor's `full_tensor` is one."""

    gathers = 0

    def full_tensor(self) -> torch.Tensor:
        CountedShard.gathers += 1
        return self.as_subclass(torch.Tensor)


def test_the_check_gathers_nothing_and_a_push_gathers_each_tensor_once():
    CountedShard.gathers = 0
    tensors = {f"model.layers.{i}.w": torch.randn(2, 2).as_subclass(CountedShard) for i in range(10)}
    tensors |= {EMBEDDING: torch.randn(5, 2).as_subclass(CountedShard)}
    tensors |= {HEAD: tensors[EMBEDDING]}
    fitted = fit(open_source(tensors), served({n: t for n, t in tensors.items() if n != HEAD}, [HEAD]))
    fitted.metadata()
    assert CountedShard.gathers == 0
    assert len(list(fitted)) == 11
    assert CountedShard.gathers == len(tensors)


class Lying(WeightSource):
    """Yields other tensors than it announces."""

    def __init__(self, announced, yielded):
        self._announced, self._yielded = announced, yielded

    def metadata(self):
        return [ParamMeta.of(name, tensor) for name, tensor in self._announced.items()]

    def __iter__(self):
        yield from self._yielded


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pairs: pairs[:-1], r"ended without 1 tensors: lm_head\.weight"),
        (lambda pairs: [*pairs, pairs[0]], r"model\.embed_tokens\.weight was yielded twice"),
        (lambda pairs: [(pairs[0][0], torch.ones(2)), *pairs[1:]], r"shape is \[2\], served is \[64, 16\]"),
        (lambda pairs: [(pairs[0][0], torch.ones(64, 16).int()), *pairs[1:]], "int32 cannot be cast to bfloat16"),
    ],
)
def test_what_passes_is_compared_again(weights, change, reason):
    pairs = change(list(weights.items()))
    for source in (Lying(weights, pairs), StreamSource(pairs)):
        with pytest.raises(SourceError, match=reason):
            list(fit(source, served(weights)))
