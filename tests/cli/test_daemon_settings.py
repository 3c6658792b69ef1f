"""Precedence of flags, environment and configuration file, and the `Config` that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.cli.daemon_flags import Value, parse_argv
from pilot_trio.cli.daemon_settings import Settings, resolve, to_config
from pilot_trio.config import Config, Endpoint
from pilot_trio.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / ".pilot"
    path.mkdir()
    return path


def settings(
    home: Path, words: str = "", config: dict[str, Any] | str | None = None, env: dict[str, str] | None = None
) -> Settings:
    if config is not None:
        (home / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return resolve(parse_argv(words.split()), env or {}, home)


def config_of(home: Path, words: str = "", config: dict[str, Any] | None = None, **env: str) -> Config:
    return to_config(settings(home, words, config, env), home)[0]


@pytest.mark.parametrize(
    ("words", "config", "env", "want", "source"),
    [
        ("", None, "", "34.71.57.205:9000", "default"),
        ("", None, "e:1", "e:1", "env"),
        ("", "c:1", "e:1", "c:1", "config"),
        ("-registry f:1", "c:1", "e:1", "f:1", "flag"),
        ("-registry f:1", None, "e:1", "f:1", "flag"),
    ],
)
def test_the_file_beats_the_environment_for_the_registry(
    home: Path, words: str, config: str | None, env: str, want: str, source: str
) -> None:
    found = settings(home, words, {"registry": config} if config else None, {"PILOT_REGISTRY": env})
    assert (found.values["registry"], found.sources["registry"]) == (want, source)


@pytest.mark.parametrize(
    ("words", "config", "env", "want"),
    [
        ("", "auto", "udp", "udp"),
        ("-transport auto", "udp", "udp", "auto"),
        ("", "auto", "", "auto"),
        ("", None, "auto", "auto"),
    ],
)
def test_the_environment_beats_the_file_for_the_transport(
    home: Path, words: str, config: str | None, env: str, want: str
) -> None:
    found = settings(home, words, {"transport": config} if config else None, {"PILOT_TRANSPORT": env})
    assert found.values["transport"] == want


def test_an_address_from_the_environment_is_told_of(home: Path) -> None:
    notes = settings(home, env={"PILOT_REGISTRY": "e:1", "PILOT_BEACON": "b:1"}).notes
    assert [note.message.split()[0] for note in notes] == ["PILOT_REGISTRY", "PILOT_BEACON"]
    assert not settings(home, "-registry f:1", env={"PILOT_REGISTRY": "e:1"}).notes


def test_an_unknown_transport_in_the_environment_is_ignored_with_a_note(home: Path) -> None:
    found = settings(home, env={"PILOT_TRANSPORT": "foo"})
    assert found.values["transport"] == "udp"
    assert found.notes[0].kv["value"] == "foo"


@pytest.mark.parametrize(
    ("key", "value", "want"),
    [
        ("log-level", "debug", ("log-level", "debug")),
        ("log_level", "debug", ("log-level", "debug")),
        ("public", True, ("public", True)),
        ("public", "false", ("public", False)),
        ("public", 1, ("public", True)),
        ("keepalive", "45s", ("keepalive", 45.0)),
        ("syn_rate_limit", 12, ("syn-rate-limit", 12)),
        ("syn_rate_limit", 12.0, ("syn-rate-limit", 12)),
        ("syn_rate_limit", "12", ("syn-rate-limit", 12)),
        ("networks", 5, ("networks", "5")),
        ("hostname", None, ("hostname", "")),
    ],
)
def test_keys_of_the_file_are_flag_names_and_values_are_flag_texts(
    home: Path, key: str, value: object, want: tuple[str, Value]
) -> None:
    found = settings(home, config={key: value})
    assert found.values[want[0]] == want[1]
    assert not found.notes


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"keepalive": 5}, ["keepalive is 5", '"45s"']),
        ({"keepalive": "abc"}, ['keepalive is "abc"', '"45s"']),
        ({"keepalive": [1]}, ["keepalive is [1]"]),
        ({"public": "maybe"}, ['public is "maybe"', "true or false"]),
        ({"syn_rate_limit": 1.5}, ["syn_rate_limit is 1.5", "whole number"]),
        ({"hostname": True}, ["hostname is True", "text"]),
        ({"no_echo": {}}, ["no_echo is {}"]),
        ("{", ["not valid JSON"]),
        ("[]", ["must hold a JSON object"]),
        ("", ["not valid JSON"]),
        ('{"a":' * 2000, ["not valid JSON"]),
        ("\xff", ["not valid JSON"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_key_value_and_remedy(
    home: Path, config: dict[str, Any] | str, parts: list[str]
) -> None:
    if isinstance(config, str):
        (home / "config.json").write_bytes(config.encode("latin-1"))
        config = None  # type: ignore[assignment]
    with pytest.raises(ConfigError) as caught:
        settings(home, config=config)
    text = str(caught.value)
    assert text.startswith("load config: ")
    assert str(home / "config.json") in text
    for part in parts:
        assert part in text


def test_an_unknown_key_is_told_of_once_with_the_nearest_known_one(home: Path) -> None:
    found = settings(home, config={"log-levl": "debug", "consent": {"telemetry": False}, "zzz": 1})
    assert [note.kv.get("did_you_mean") for note in found.notes] == ["log_level", None]
    assert [note.kv["key"] for note in found.notes] == ["log-levl", "zzz"]


def test_a_file_that_was_named_must_exist_the_default_one_need_not(home: Path) -> None:
    assert settings(home).config_path is None
    with pytest.raises(ConfigError, match=r"load config: open .*nowhere.json: no such file"):
        settings(home, f"-config {home}/nowhere.json")


def test_a_named_file_replaces_the_default_one(home: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"hostname": "other"}')
    found = settings(home, f"-config {tmp_path}/other.json", {"hostname": "mine", "public": True})
    assert (found.values["hostname"], found.values["public"]) == ("other", False)


def test_an_unreadable_file_is_refused(home: Path) -> None:
    (home / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"load config: open .* is a directory"):
        settings(home)


def test_every_flag_reaches_the_config(home: Path) -> None:
    config = config_of(
        home,
        "-registry r:1 -registry-tls -registry-trust system -beacon b:1,c:2 -listen 127.0.0.1:3 -socket /tmp/s "
        "-identity /tmp/i -owner o@p -hostname h -public -endpoint e:4 -advertise-endpoint a:5 -encrypt=false "
        "-relay-only -trust-auto-approve -networks 1,2 -admin-token t -keepalive 1s -idle-timeout 2s -time-wait 3s "
        "-syn-rate-limit 4 -max-conns-per-port 5 -max-conns-total 6 -no-echo -no-dataexchange -no-eventstream "
        "-dataexchange-b64 -webhook http://w/ -webhook-secret s -fail-fast",
    )
    assert config.registry.endpoint == Endpoint("r", 1)
    assert (config.registry.tls, config.registry.trust, config.registry.fail_fast) == (True, "system", True)
    assert config.rendezvous is None
    assert config.beacon == (Endpoint("b", 1), Endpoint("c", 2))
    assert (config.listen, config.endpoint, config.advertise_endpoint) == (
        Endpoint("127.0.0.1", 3),
        Endpoint("e", 4),
        Endpoint("a", 5),
    )
    assert (config.socket, config.identity) == (Path("/tmp/s"), Path("/tmp/i"))
    assert (config.email, config.hostname, config.public, config.encrypt) == ("o@p", "h", True, False)
    assert (config.relay_only, config.trust.auto_approve, config.networks) == (True, True, (1, 2))
    assert (config.admin_token, config.webhook.url, config.webhook.secret) == ("t", "http://w/", "s")
    streams = config.streams
    assert (config.keepalive, streams.keepalive, streams.idle_timeout, streams.time_wait) == (1.0, 1.0, 2.0, 3.0)
    assert (streams.syn_rate_limit, streams.max_conns_per_port, streams.max_conns_total) == (4, 5, 6)
    services = config.services
    assert (services.echo, services.dataexchange, services.eventstream, services.dataexchange_b64) == (
        False,
        False,
        False,
        True,
    )


def test_without_flags_nothing_is_kept_and_the_public_registry_is_used(home: Path) -> None:
    config = config_of(home)
    assert config.identity is None
    assert config.registry.endpoint == Endpoint("34.71.57.205", 9000)
    assert config.home == home


def test_the_environment_supplies_secrets(home: Path) -> None:
    config = config_of(home, PILOT_ADMIN_TOKEN="a", PILOT_WEBHOOK_SECRET="w")
    assert (config.admin_token, config.webhook.secret) == ("a", "w")


def test_email_beats_its_old_name(home: Path) -> None:
    assert config_of(home, "-email a@b -owner c@d").email == "a@b"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("-transport foo", '-transport: invalid transport "foo": must be udp, compat or auto'),
        ("-transport compat", "-transport: the compat transport is not supported by this node; use udp or auto"),
        ("-registry nowhere", "-registry: 'nowhere' is not host:port; write for example 127.0.0.1:9000"),
        ("-beacon a:1,b", "-beacon: 'b' is not host:port; write for example 127.0.0.1:9000"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_flag(home: Path, words: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(home, words)
    assert str(caught.value) == error


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_limit_of_nought_is_the_default_and_told_of(home: Path, value: str) -> None:
    """`config --set` lets nought pass, and to the reference it means the default."""
    words = f"-syn-rate-limit {value} -max-conns-per-port {value} -max-conns-total {value} -keepalive {value}s"
    found = settings(home, words, {"idle_timeout": f"{value}s", "time_wait": f"{value}s"})
    config, plain = to_config(found, home)[0], config_of(home, config={})
    assert (config.streams, config.keepalive) == (plain.streams, plain.keepalive)
    told = {note.kv["setting"] for note in found.notes}
    assert told == {
        "syn-rate-limit", "max-conns-per-port", "max-conns-total", "keepalive", "idle-timeout", "time-wait",
    }  # fmt: skip


def test_bad_network_ids_are_skipped_and_told_of(home: Path) -> None:
    config, notes = to_config(settings(home, "-networks 1,x,65536,7,99999999999,-1"), home)
    assert config.networks == (1, 7)
    assert [note.kv["value"] for note in notes] == ["x", "65536", "99999999999", "-1"]


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("", frozenset()),
        ("1", {1}),
        ("1, 7,9", {1, 7, 9}),
        ("*", None),
        ("3,all", None),
        ("0,x,-4,²,5", {5}),
    ],
)
@pytest.mark.parametrize("name", ["syn", "reply", "rekey"])
def test_whitelists_name_nodes_or_everybody(home: Path, name: str, text: str, nodes: set[int] | None) -> None:
    config = config_of(home, "", None, **{f"PILOT_{name.upper()}_WHITELIST": text})
    assert getattr(config.tunnel, f"{name}_whitelist") == nodes


def test_tunnels_are_open_to_all_and_watched_unless_flags_say_otherwise(home: Path) -> None:
    config = config_of(home)
    assert (config.tunnel.strict_trust, config.tunnel.path_watch) == (False, True)
    config = config_of(home, "-strict-dataplane-trust -no-path-watch")
    assert (config.tunnel.strict_trust, config.tunnel.path_watch) == (True, False)
    assert (config.tunnel.address_watch, config.tunnel.receive_watch) == (True, True)
    config = config_of(home, "-no-addr-watch -no-rx-watchdog")
    assert (config.tunnel.address_watch, config.tunnel.receive_watch) == (False, False)


@pytest.mark.parametrize(
    ("words", "env", "want"),
    [
        ("", "", 64 << 20),
        ("", "65536", 65536),
        ("", "65535", 64 << 20),  # out of range: ignored, as by the reference
        ("", "2147483647", 2147483647),
        ("", "2147483648", 64 << 20),
        ("", "much", 64 << 20),
        ("-dataexchange-max-frame 70000", "80000", 70000),
    ],
)
def test_the_frame_limit_of_data_exchange_comes_from_flag_or_environment(
    home: Path, words: str, env: str, want: int
) -> None:
    config = config_of(home, words, PILOT_DATAEXCHANGE_MAX_FRAME=env)
    assert config.services.dataexchange_frame_max == want


def test_a_frame_limit_out_of_range_is_refused_when_it_is_a_flag(home: Path) -> None:
    with pytest.raises(ConfigError, match="65536"):
        config_of(home, "-dataexchange-max-frame 65535")
