"""Finding NaN and Inf in received bytes."""

import numpy as np
import torch

# A float is NaN or Inf when all bits of its exponent are set (float8_e4m3fn has no Inf: NaN is all seven bits).
# For each dtype: signed and unsigned integers of its size, and the mask of those bits. A complex number is two floats.
EXPONENTS: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int]] = {
    **dict.fromkeys((torch.float64, torch.complex128), (np.int64, np.uint64, 0x7FF0_0000_0000_0000)),
    **dict.fromkeys((torch.float32, torch.complex64), (np.int32, np.uint32, 0x7F80_0000)),
    **dict.fromkeys((torch.float16, torch.complex32), (np.int16, np.uint16, 0x7C00)),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80),
    torch.float8_e4m3fn: (np.int8, np.uint8, 0x7F),
    torch.float8_e5m2: (np.int8, np.uint8, 0x7C),
}
# Dtypes of one byte with a single NaN and no Inf.
NANS: dict[torch.dtype, int] = {
    torch.float8_e4m3fnuz: 0x80,
    torch.float8_e5m2fnuz: 0x80,
    torch.float8_e8m0fnu: 0xFF,
}
# Read twice, so a chunk should stay in the processor's cache.
CHUNK_BYTES = 2 * 2**20


def is_finite(data: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether uint8 data[num_bytes], read as `dtype`, is free of NaN and Inf. Integers are always finite.

    It uses numpy because it runs beside the engine: torch would use the threads that generate.
    """
    if dtype in NANS:
        return not (data == NANS[dtype]).any()
    if dtype not in EXPONENTS:
        return True
    signed, unsigned, mask = EXPONENTS[dtype]
    sign = np.iinfo(signed).max + 1
    for start in range(0, data.size, CHUNK_BYTES):
        piece = data[start : start + CHUNK_BYTES]
        # NaN and Inf are the largest values: positive ones as signed integers, negative ones as unsigned integers.
        if piece.view(signed).max() >= mask or piece.view(unsigned).max() >= sign + mask:
            return False
    return True
