"""Encodes requests for the engine, and names the field of a value that has no encoding.

json_text.py finds such values in bodies. This is the net for those that come another way: in headers, in parameters of
the URL, or made by vLLM. vLLM 0.32 answers them with 500 and an empty message (EngineGenerateError), and the request
stays registered.
"""

from collections.abc import Iterator
from typing import Any, cast

import msgspec
from vllm.exceptions import VLLMValidationError

from openai_frontend.vllm_seam import EngineCoreRequest, MsgpackEncoder


def encode_request(encoder: MsgpackEncoder, request: EngineCoreRequest) -> bytes:
    """Raises VLLMValidationError, which names the field."""
    try:
        return cast(bytes, encoder.encode(request)[0])
    except (UnicodeEncodeError, OverflowError) as error:
        field = next(unencodable_fields(encoder, request), None)
        name = field or "a field of the request"
        raise VLLMValidationError(f"{name}: cannot be sent to the engine: {error}", parameter=field) from None


def unencodable_fields(encoder: MsgpackEncoder, struct: Any) -> Iterator[str]:
    """Names of the fields, of the struct itself or of its sampling parameters, that have no encoding."""
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        try:
            encoder.encode(value)
        except (UnicodeEncodeError, OverflowError):
            yield from unencodable_fields(encoder, value) if isinstance(value, msgspec.Struct) else (field.name,)
