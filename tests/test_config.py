from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilot_trio.config import (
    AUTO_JOIN_MAX,
    KEEPALIVE_MIN,
    REGISTRY_CONNECTIONS_MAX,
    Config,
    Endpoint,
    RegistryConfig,
    RendezvousConfig,
    ServicesConfig,
    StreamLimits,
    TrustConfig,
    WebhookConfig,
)
from pilot_trio.errors import ConfigError


def test_default_is_a_node_with_a_rendezvous_on_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config()
    assert config.home == tmp_path / ".pilot"
    assert config.identity == tmp_path / ".pilot/identity.json"
    assert config.rendezvous is not None
    assert config.rendezvous.registry == ("127.0.0.1", 9000)
    assert config.rendezvous.beacon == ("127.0.0.1", 9001)
    assert config.rendezvous.store == tmp_path / ".pilot/pilot-trio/rendezvous.db"
    assert config.registry.endpoint is None
    assert not config.registry.fail_fast


def test_streams_have_the_protocols_times_and_counts_by_default() -> None:
    assert attrs.asdict(StreamLimits()) == {
        "idle_timeout": 120.0,
        "keepalive": 60.0,
        "time_wait": 10.0,
        "max_conns_per_port": 1024,
        "max_conns_total": 65_536,
        "syn_rate_limit": 100,
    }


def test_default_socket_is_where_clients_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert Config().socket == Path("/run/user/7/pilot.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert Config().socket == Path("/tmp/pilot.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Config().socket == Path("/tmp/pilot.sock")


def test_naming_a_registry_leaves_out_the_embedded_rendezvous() -> None:
    config = Config(registry=RegistryConfig(endpoint="10.0.0.1:9000"))
    assert config.rendezvous is None
    assert config.registry.endpoint == Endpoint("10.0.0.1", 9000)


def test_registry_and_embedded_rendezvous_may_be_named_together() -> None:
    rendezvous = RendezvousConfig()
    config = Config(registry=RegistryConfig(endpoint="registry.example:9000"), rendezvous=rendezvous)
    assert config.rendezvous is rendezvous


def test_text_is_accepted_for_endpoints_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    config = Config(
        home="~/p", socket="/tmp/x.sock", identity=None, beacon=["[::1]:9001", Endpoint("b", 1)], listen=":0"
    )
    assert config.home == Path("/home/u/p")
    assert config.socket == Path("/tmp/x.sock")
    assert config.identity is None
    assert config.beacon == (Endpoint("::1", 9001), Endpoint("b", 1))
    assert config.listen == Endpoint("", 0)
    assert Config(beacon="127.0.0.1:1").beacon == (Endpoint("127.0.0.1", 1),)


def test_fingerprint_is_compared_without_capitals_and_colons() -> None:
    digits = "ab" * 32
    written = ":".join(["AB"] * 32)
    assert RegistryConfig(tls=True, fingerprint=written).fingerprint == digits


def test_values_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Config().public = True  # type: ignore[misc]


def test_secrets_stay_out_of_the_repr() -> None:
    text = repr(Config(admin_token="tok-1", webhook=WebhookConfig(secret="tok-2")))
    assert "tok-1" not in text
    assert "tok-2" not in text


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (RegistryConfig, {"endpoint": "nowhere"}, "'nowhere' is not host:port; write for example"),
    (RegistryConfig, {"endpoint": "h:65536"}, "'h:65536' is not host:port"),
    (RegistryConfig, {"trust": "none"}, "RegistryConfig.trust is 'none'; give 'pinned' or 'system'"),
    (RegistryConfig, {"fingerprint": "abc"}, "RegistryConfig.fingerprint is 'abc'; give the 64 hex digits"),
    (RegistryConfig, {"fingerprint": "zz" * 32}, "give the 64 hex digits"),
    (RegistryConfig, {"tls": True}, "registry TLS with -registry-trust=pinned requires RegistryFingerprint"),
    (RegistryConfig, {"tls": "yes"}, "RegistryConfig.tls is 'yes'; give True or False"),
    (RegistryConfig, {"connections": 0}, "RegistryConfig.connections is 0; give a whole number from 1 to"),
    (RegistryConfig, {"connections": REGISTRY_CONNECTIONS_MAX + 1}, "give a whole number from 1 to"),
    (RegistryConfig, {"connections": True}, "RegistryConfig.connections is True"),
    (RegistryConfig, {"fail_fast": 1}, "RegistryConfig.fail_fast is 1; give True or False"),
    (ServicesConfig, {"echo": "no"}, "ServicesConfig.echo is 'no'; give True or False"),
    (StreamLimits, {"idle_timeout": -1}, "StreamLimits.idle_timeout is -1; give seconds, at least 0"),
    (StreamLimits, {"time_wait": math.inf}, "StreamLimits.time_wait is inf; give seconds"),
    (StreamLimits, {"max_conns_total": 1.5}, "StreamLimits.max_conns_total is 1.5; give a whole number"),
    (TrustConfig, {"auto_approve": None}, "TrustConfig.auto_approve is None; give True or False"),
    (WebhookConfig, {"url": None}, "WebhookConfig.url is None; give a text"),
    (Config, {"keepalive": 0}, f"keepalive is 0; give seconds, at least {KEEPALIVE_MIN:g}"),
    (Config, {"keepalive": math.nan}, "keepalive is nan; give seconds"),
    (Config, {"keepalive": "60s"}, "keepalive is '60s'; give seconds"),
    (Config, {"hostname": 5}, "hostname is 5; give a text"),
    (Config, {"admin_token": 5}, "admin_token is not a text"),
    (Config, {"networks": [1, "2"]}, "networks holds '2'; give network ids from 0 to 65535"),
    (Config, {"networks": [65536]}, "networks holds 65536"),
    (Config, {"networks": range(AUTO_JOIN_MAX + 1)}, f"networks holds {AUTO_JOIN_MAX + 1} ids; give at most"),
    (Config, {"rendezvous": None}, "registry.endpoint is None and there is no embedded rendezvous; name a registry"),
    (
        Config,
        {"rendezvous": RendezvousConfig(registry=None, tls=Endpoint("", 0))},
        "has no plaintext registry listener for its own node; give RendezvousConfig.registry",
    ),
]


@pytest.mark.parametrize(("group", "values", "text"), WRONG, ids=lambda item: str(item)[:40])
def test_wrong_values_are_refused_with_setting_value_and_remedy(group: Any, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        group(**values)
    assert text in str(caught.value)


def test_values_at_their_bounds_are_accepted() -> None:
    assert RegistryConfig(connections=1).connections == 1
    assert RegistryConfig(connections=REGISTRY_CONNECTIONS_MAX).connections == REGISTRY_CONNECTIONS_MAX
    assert Config(keepalive=KEEPALIVE_MIN).keepalive == KEEPALIVE_MIN
    assert len(Config(networks=range(AUTO_JOIN_MAX)).networks) == AUTO_JOIN_MAX
    assert Config(networks=[0, 65535]).networks == (0, 65535)


def test_settings_load_without_trio() -> None:
    code = "import sys, pilot_trio.config; sys.exit('trio' in sys.modules or 'cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
