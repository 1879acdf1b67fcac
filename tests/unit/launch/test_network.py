"""The interface that leads to another host, and ports that nobody takes meanwhile."""

import socket
from pathlib import Path

import pytest

from workloads.launch import network
from workloads.launch.network import free_ports, interface_to

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "no.such.host.invalid", "::1"])
def test_nothing_where_no_other_host_could_use_it(address: str) -> None:
    assert interface_to(address) is None


def test_this_hosts_own_address_and_one_beyond_agree() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("NOT TESTED: this machine has no network")
        own = probe.getsockname()[0]
    names = {name for _, name in socket.if_nameindex()}
    assert interface_to("192.0.2.1") == interface_to(own) in names - {"lo"}


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ("32768\t60999\n", 10_001, 32_767),
        ("16000 65535", 10_001, 15_999),
        ("1024 65535", 10_001, 65_535),
    ],
)
def test_ports_that_the_kernel_gives_to_no_connection_where_there_are_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, least: int, most: int
) -> None:
    (tmp_path / "range").write_text(given)
    monkeypatch.setattr(network, "_GIVEN_BY_THE_KERNEL", tmp_path / "range")
    ports = [free_ports() for _ in range(200)]
    assert least <= min(ports) and max(ports) < most
    assert len(set(ports)) > 150, "two jobs that begin together have ports of their own"
