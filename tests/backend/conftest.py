"""The model's modules outside of Triton."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.triton_stand_in import Request, install, tensor

install()


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    """load("settings") → tritonlive/backend/settings.py"""
    return lambda name: importlib.import_module(f"tritonlive.backend.{name}")


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Request]:
    """request_of(text_input="hi", stream=True, input_ids=[1, 2]) with shapes as Triton gives them."""

    def build(parameters: str = "{}", **values: Any) -> Request:
        return Request(parameters, **{name: tensor(value) for name, value in values.items()})

    return build
