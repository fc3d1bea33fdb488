"""Each case's engines run once, in one process of pytest-xdist."""

import pytest

FOLDER = "tests/matrix/"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests by case. pytest calls this with the tests of all folders."""
    for item in items:
        if item.nodeid.startswith(FOLDER) and isinstance(item, pytest.Function):
            item.add_marker(pytest.mark.xdist_group(f"matrix {item.callspec.params['running']}"))
