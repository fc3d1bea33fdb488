import pytest
import torch

from sync.weights.finite import CHUNK_BYTES, EXPONENTS, NANS, is_finite


def read(tensor: torch.Tensor) -> bool:
    return is_finite(tensor.reshape(-1).view(torch.uint8).numpy(), tensor.dtype)


@pytest.mark.parametrize("dtype", [dtype for dtype in EXPONENTS if not dtype.is_complex])
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


@pytest.mark.parametrize("dtype", NANS)
def test_bytes_with_a_single_nan(dtype):
    raw = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for byte in raw:
        tensor = byte.reshape(1).view(dtype)
        assert read(tensor) == bool(tensor.float().isfinite().all()), int(byte)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_either_part_of_a_complex_number(dtype):
    assert read(torch.tensor([1 + 2j, 0j], dtype=dtype))
    for value in (complex(float("nan"), 0), complex(0, float("inf"))):
        assert not read(torch.tensor([1j, value], dtype=dtype))
