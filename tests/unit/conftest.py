"""A test that docs/hardware.md lists for code of GPUs has to run that code."""

from collections.abc import Generator

import pytest

from tests.support.cuda_list import ROOT, followed, promised


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    file = item.path.relative_to(ROOT).as_posix()
    wanted = promised(file, item.name.partition("[")[0])
    if not wanted:
        return (yield)
    with followed(wanted) as missed:
        yield
    if missed:
        names = ", ".join(f"{place} {function}" for place, function in missed)
        pytest.fail(f"docs/hardware.md says that this test reaches {names}; it runs none of it")
