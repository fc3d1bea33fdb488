"""openai_frontend/errors.py: a Triton error's message becomes an HTTP status."""

import pytest

from openai_frontend.errors import TritonError


@pytest.mark.parametrize(
    ("text", "message", "status"),
    [
        ("temperature: too hot [INVALID_ARG]", "temperature: too hot", 400),
        ("start_weight_update: not now [ALREADY_EXISTS]", "start_weight_update: not now", 409),
        ("engine: died [UNAVAILABLE]", "engine: died", 503),
        ("two\nlines [INTERNAL]", "two\nlines", 500),
        ("without a code", "without a code", 500),
        ("Request for unknown model: 'llm' is not found", "Request for unknown model: 'llm' is not found", 503),
        ("a list [1, 2]", "a list [1, 2]", 500),
    ],
)
def test_the_code_behind_the_message_decides(text: str, message: str, status: int) -> None:
    error = TritonError.parse(text)
    assert (error.message, error.http_status) == (message, status)
