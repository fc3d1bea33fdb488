"""Triton's requests, for the model's modules outside of Triton."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.triton_stand_in import Request, tensor


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Request]:
    """request_of(text_input="hi", stream=True, input_ids=[1, 2]) with shapes as Triton gives them."""

    def build(parameters: str = "{}", **values: Any) -> Request:
        return Request(parameters, **{name: tensor(value) for name, value in values.items()})

    return build
