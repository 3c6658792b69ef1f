from __future__ import annotations

import pytest

from pilot_trio.rendezvous.settings import RendezvousConfig
from pilot_trio.rendezvous.sources import Privileged, is_loopback, source_of


@pytest.mark.parametrize(
    "host, source",
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_limits_count_hosts_and_ipv6_networks(host: str, source: str) -> None:
    assert source_of(host) == source


@pytest.mark.parametrize(
    "host, expected",
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("", False),
    ],
)
def test_loopback_in_every_spelling(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert Privileged(RendezvousConfig().unlimited).contains(host) is expected


def test_privileged_networks_are_those_of_the_operator() -> None:
    privileged = Privileged(RendezvousConfig(unlimited=("10.0.0.0/8", "2001:db8::/32")).unlimited)
    assert privileged.contains("10.1.2.3") and privileged.contains("2001:db8::9")
    assert not privileged.contains("127.0.0.1") and not privileged.contains("2001:db9::9")
    assert not Privileged(()).contains("127.0.0.1")
