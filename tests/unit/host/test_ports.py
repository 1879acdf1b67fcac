"""Which text is the number of a port."""

import pytest

from workloads.host.ports import is_port

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("0", True), ("6006", True), ("65535", True), ("65536", False), ("-1", False)]
    + [(text, False) for text in ("", "abc", "²", "٣", "80 ", "1e3")],
)
def test_numbers_of_ports(text: str, is_one: bool) -> None:
    assert is_port(text) is is_one
