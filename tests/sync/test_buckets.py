import pytest

from sync.buckets import ALIGNMENT, lay_out
from sync.sources import ParamMeta


def metas(*sizes: int) -> list[ParamMeta]:
    return [ParamMeta(str(number), "uint8", (size,)) for number, size in enumerate(sizes)]


def names(sizes: tuple[int, ...], bucket_bytes: int) -> list[str]:
    return ["".join(slot.meta.name for slot in bucket.slots) for bucket in lay_out(metas(*sizes), bucket_bytes)]


def test_tensors_fill_buckets_in_order():
    assert names((64, 64, 64, 64, 64), 128) == ["01", "23", "4"]


def test_a_large_tensor_has_its_own_bucket():
    assert names((10, 1000, 10, 10), 128) == ["0", "1", "23"]


def test_no_tensors_no_buckets():
    assert names((), 128) == []


@pytest.mark.parametrize("bucket_bytes", [1, 64, 100, 1000, 10**6])
def test_slots_are_aligned_and_apart(bucket_bytes, weights):
    listed = [ParamMeta.of(name, tensor) for name, tensor in weights.items()]
    buckets = list(lay_out(listed, bucket_bytes))
    assert [slot.meta for bucket in buckets for slot in bucket.slots] == listed
    for bucket in buckets:
        assert bucket.num_bytes <= bucket_bytes or len(bucket.slots) == 1
        end = 0
        for slot in bucket.slots:
            assert slot.offset % ALIGNMENT == 0
            assert slot.offset >= end
            end = slot.end
        assert bucket.num_bytes >= max(end, 1)
