"""The model's modules, as tests/model imports them."""

from tests.model.conftest import load

__all__ = ["load"]
