"""Dtypes by their names: safetensors' ("BF16") and torch's ("bfloat16"), without importing torch."""

# safetensors' name of each dtype that torch also has. F6_E2M3 and F6_E3M2 are missing: torch has neither.
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# Bytes of one element, by torch's name of the dtype.
ITEM_SIZES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "float4_e2m1fn_x2": 1,
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
CASTABLE = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Dtypes between which a push may cast a tensor; any other difference is an error."""


def stored_meta(dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...]]:
    """Torch's dtype name and shape of a tensor, from its safetensors header.

    Two F4 elements share a byte: torch counts the pairs. Raises ValueError on a dtype torch does not have.
    """
    if dtype not in SAFETENSORS_DTYPES:
        raise ValueError(f"dtype {dtype} is not known to torch")
    if dtype == "F4" and shape:
        return SAFETENSORS_DTYPES[dtype], (*shape[:-1], shape[-1] // 2)
    return SAFETENSORS_DTYPES[dtype], tuple(shape)


def widest(*dtypes: str) -> str:
    """The first of the dtypes with the most bytes an element."""
    return max(dtypes, key=ITEM_SIZES.__getitem__)


def travel_dtype(stored: str, loaded: str) -> str:
    """The dtype a tensor is sent in: the loaded parameter's, or the checkpoint's where no cast is allowed."""
    return loaded if {stored, loaded} <= CASTABLE else stored
