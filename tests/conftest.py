"""A test finds what it would find alone, whatever has run before it in its process."""

import os
import random
import sys
from collections.abc import Iterator

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same random numbers."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """The environment: a command that is called in the test's own process adds what .env says."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
