"""Replay of every recorded JSON exchange against one fresh directory, and of the constructed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.directory import Directory, DirectorySettings, PeerInfo
from pilot_trio.wire.registry import Message

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "registry.json").read_text())
TIMES = frozenset({"time", "timestamp", "created", "last_seen", "last_seen_unix", "created_at"})
NOW = 1_795_459_582.0
PEER = PeerInfo("127.0.0.1", 40000, connection_id=1, loopback=True)


def mask_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "TIME" if key in TIMES else mask_times(item) for key, item in value.items()}
    return [mask_times(item) for item in value] if isinstance(value, list) else value


def exchange(directory: Directory, entry: dict[str, Any], now: float) -> tuple[Message, Message]:
    # Each exchange on a connection of its own: nothing recorded may depend on what a connection has proven.
    peer = PeerInfo("127.0.0.1", 40000, connection_id=int(now), loopback=True)
    got = directory.handle(json.loads(entry["request_json"]), peer, now)
    return mask_times(got), mask_times(json.loads(entry["response_json"]))


def test_recorded_exchanges_in_their_order() -> None:
    directory = Directory(DirectorySettings(admin_token="admin-secret"), now=NOW)
    now = NOW
    for entry in VECTORS["json_exchanges"]:
        setup = [extra for extra in VECTORS["replay_setup"] if extra["before"] == entry["name"]]
        for step in [*setup, entry]:
            now += 1
            got, expected = exchange(directory, step, now)
            assert got == expected, step.get("name", step)


def registered(*seeds: int) -> Directory:
    directory = Directory(DirectorySettings(admin_token="admin-secret"), now=NOW)
    for number, seed in enumerate(seeds, 1):
        identity = Identity.from_seed(bytes(range(seed, seed + 32)))
        listen = f"127.0.0.1:2400{number}"
        key = identity.public_key_b64
        directory.handle(
            {
                "type": "register",
                "listen_addr": listen,
                "public_key": key,
                "signature": identity.sign_text(f"register:{listen}:{key}"),
                "version": "1.18.0",
            },
            PEER,
            NOW,
        )
    return directory


MISC = {entry["name"]: entry for entry in VECTORS["json_misc"] if "request_json" in entry and "response_json" in entry}


@pytest.mark.parametrize("name", sorted(MISC.keys() - {"punch", "beacon_list"}))
def test_constructed_exchange(name: str) -> None:
    got, expected = exchange(registered(0, 32, 64), MISC[name], NOW)
    assert got == expected


def test_punch_between_nodes_that_trust_each_other() -> None:
    directory = registered(0, 32)
    alpha = Identity.from_seed(bytes(range(32)))
    directory.handle(
        {"type": "report_trust", "node_id": 1, "peer_id": 2, "signature": alpha.sign_text("report_trust:1:2")},
        PEER,
        NOW,
    )
    got, expected = exchange(directory, MISC["punch"], NOW)
    assert got == expected


def test_announced_beacon_is_listed() -> None:
    directory = registered()
    exchange(directory, MISC["beacon_register"], NOW)
    got, expected = exchange(directory, MISC["beacon_list"], NOW)
    assert got == expected


def test_relay_only_registration_hides_the_endpoint_behind_the_beacon() -> None:
    entry = next(entry for entry in VECTORS["json_misc"] if entry["name"].startswith("register (relay-only"))
    expected = next(entry for entry in VECTORS["json_misc"] if entry["name"].startswith("resolve_ok of a relay-only"))
    directory = Directory(DirectorySettings("t", beacon_address="127.0.0.1:29611"), now=NOW)
    assert directory.handle(json.loads(entry["request_json"]), PEER, NOW)["type"] == "register_ok"
    asking = Identity.from_seed(bytes(range(32)))
    key = asking.public_key_b64
    signature = asking.sign_text(f"register::{key}")
    directory.handle({"type": "register", "listen_addr": "", "public_key": key, "signature": signature}, PEER, NOW)
    directory.handle(
        {"type": "report_trust", "node_id": 2, "peer_id": 1, "signature": asking.sign_text("report_trust:2:1")},
        PEER,
        NOW,
    )
    request = {"type": "resolve", "node_id": 1, "requester_id": 2, "signature": asking.sign_text("resolve:2:1")}
    assert directory.handle(request, PEER, NOW) == json.loads(expected["response_json"])
