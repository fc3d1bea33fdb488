"""tritonlive/wire/error_codes.py: codes are appended to messages and parsed again."""

from http import HTTPStatus

import pytest

from tests.triton_stand_in import TritonError
from tritonlive.wire.error_codes import ErrorCode, code_of_status, decode_error, encode_error


@pytest.mark.parametrize("code", ErrorCode)
@pytest.mark.parametrize("message", ["no", "", "two\nlines", "brackets [INTERNAL] inside", "ends in brackets [x]"])
def test_there_and_back(code: ErrorCode, message: str) -> None:
    assert decode_error(encode_error(message, code)) == (message, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code at all", None),
        ("an unknown one [NO_SUCH_CODE]", None),
        ("not at the end [INTERNAL].", None),
        ("Request for unknown model: 'llm' is not found", ErrorCode.UNAVAILABLE),
        ("Stub process 'llm_0_0' is not healthy.", ErrorCode.UNAVAILABLE),
    ],
)
def test_messages_of_triton_itself(text: str, code: ErrorCode | None) -> None:
    assert decode_error(text) == (text, code)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_one_of_tritons(code: ErrorCode) -> None:
    assert isinstance(getattr(TritonError, code.triton_name), int)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INVALID, 400),
        (ErrorCode.UNAUTHENTICATED, 401),
        (ErrorCode.REFUSED, 403),
        (ErrorCode.NOT_FOUND, 404),
        (ErrorCode.CONFLICT, 409),
        (ErrorCode.UNAVAILABLE, 503),
        (ErrorCode.INTERNAL, 500),
        (ErrorCode.UNSUPPORTED, 500),
        (ErrorCode.CANCELLED, 500),
    ],
)
def test_the_status_that_a_front_end_answers_with(code: ErrorCode, status: int) -> None:
    assert code.http_status == HTTPStatus(status)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((status, ErrorCode.INVALID) for status in (400, 404, 413, 422)),
        (401, ErrorCode.UNAUTHENTICATED),
        (403, ErrorCode.REFUSED),
        (409, ErrorCode.CONFLICT),
        *((status, ErrorCode.UNAVAILABLE) for status in (502, 503)),
        *((status, ErrorCode.INTERNAL) for status in (418, 500, 504)),
    ],
)
def test_what_a_status_stands_for(status: int, code: ErrorCode) -> None:
    assert code_of_status(status) is code
