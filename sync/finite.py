"""Finding NaN and Inf in received bytes."""

import numpy as np
import torch

# A float is NaN or Inf when all bits of its exponent are set (float8_e4m3fn has no Inf: NaN is all seven bits).
# Dtype of an integer as wide, and the mask of those bits.
EXPONENTS: dict[torch.dtype, tuple[type[np.unsignedinteger], int]] = {
    torch.float64: (np.uint64, 0x7FF0_0000_0000_0000),
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float8_e4m3fn: (np.uint8, 0x7F),
    torch.float8_e5m2: (np.uint8, 0x7C),
}
# Elements looked at in one go; stays in a core's cache.
CHUNK = 2**18


def is_finite(data: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether uint8 data[num_bytes], read as `dtype`, holds neither NaN nor Inf. Integers always are finite.

    In numpy rather than torch, because it runs beside the engine: torch would take the threads that generate.
    """
    if dtype not in EXPONENTS:
        return True
    integer, mask = EXPONENTS[dtype]
    bits = data.view(integer)
    scratch = np.empty(min(CHUNK, bits.size), dtype=integer)
    for start in range(0, bits.size, CHUNK):
        piece = bits[start : start + CHUNK]
        exponents = np.bitwise_and(piece, integer(mask), out=scratch[: piece.size])
        if exponents.max() == mask:
            return False
    return True
