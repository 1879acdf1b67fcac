"""The interface that leads to another host."""

import socket

import pytest

from workloads.launch.network import interface_to

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
