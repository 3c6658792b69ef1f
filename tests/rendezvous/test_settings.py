from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.errors import ConfigError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.settings import RendezvousConfig

TLS = Endpoint("", 9443)


def test_the_default_listens_on_loopback_only_and_keeps_nothing() -> None:
    settings = RendezvousConfig()
    assert (settings.registry, settings.beacon) == (Endpoint("127.0.0.1", 9000), Endpoint("127.0.0.1", 9001))
    assert (settings.tls, settings.http, settings.store) == (None, None, None)


def test_secrets_do_not_show() -> None:
    assert "hunter2" not in repr(RendezvousConfig(admin_token="hunter2"))


def test_networks_may_be_texts() -> None:
    settings = RendezvousConfig(unlimited=("10.0.0.0/8", "2001:db8::/32"))
    assert settings.unlimited == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    assert RendezvousConfig(unlimited=settings.unlimited) == settings


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"registry": None}, "needs a registry listener"),
        ({"tls": TLS, "tls_certificate": Path("c")}, "go together"),
        ({"tls": TLS, "tls_key": Path("k")}, "go together"),
        ({"tls_certificate": Path("c"), "tls_key": Path("k")}, "would not be used"),
        ({"stale_threshold": 0.0}, "must be positive"),
        ({"stale_threshold": float("nan")}, "must be positive"),
        ({"unlimited": ("10.0.0.1/8",)}, "has host bits set"),
        ({"unlimited": ("everywhere",)}, "write for example 10.0.0.0/8"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RendezvousConfig(**wrong)
