import pytest
import torch

from sync.finite import CHUNK_BYTES, EXPONENTS, is_finite


def read(tensor: torch.Tensor) -> bool:
    return is_finite(tensor.reshape(-1).view(torch.uint8).numpy(), tensor.dtype)


@pytest.mark.parametrize("dtype", EXPONENTS)
@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 3])
def test_finite_and_not(dtype, size):
    tensor = torch.linspace(-200, 200, size).to(dtype)
    assert read(tensor)
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = tensor.clone()
        broken[-1] = value
        # float8_e4m3fn has no Inf: torch saturates or makes it NaN.
        assert read(broken) == bool(broken.float().isfinite().all())
    assert not read(torch.full((1,), float("nan")).to(dtype))


def test_extremes_are_finite():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        assert read(torch.tensor([info.max, info.min, info.tiny, 0.0], dtype=dtype))


def test_integers_and_nothing_are_finite():
    assert read(torch.tensor([-1, 2**62]))
    assert read(torch.empty(0, 3))
