"""Requests with sub-commands, as recorded from the reference's clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot_trio.wire.ipc import Code, encode_frame
from pilot_trio.wire.ipc_requests import (
    Handshake,
    Managed,
    Network,
    encode_handshake,
    encode_handshake_wait,
    encode_managed,
    encode_member_tags,
    encode_network,
    encode_network_invite,
    encode_policy_get,
    encode_policy_set,
    encode_tags,
)

RECORDED = {
    vector["id"]: vector["request"][0]
    for vector in json.loads((Path(__file__).parents[1] / "vectors" / "ipc.json").read_text())["vectors"]
    if vector["request"]
}
POLICY = {"version": 1, "rules": [{"name": "r1", "on": "connect", "match": "true", "actions": [{"type": "allow"}]}]}


@pytest.mark.parametrize(
    "recorded, command, payload",
    [
        ("hs-send", Code.HANDSHAKE, encode_handshake(Handshake.SEND, 2, "why")),
        ("hs-approve-unknown", Code.HANDSHAKE, encode_handshake(Handshake.APPROVE, 77)),
        ("hs-reject", Code.HANDSHAKE, encode_handshake(Handshake.REJECT, 77, "because")),
        ("hs-revoke", Code.HANDSHAKE, encode_handshake(Handshake.REVOKE, 2)),
        ("pending-empty", Code.HANDSHAKE, encode_handshake(Handshake.PENDING)),
        ("trusted-one", Code.HANDSHAKE, encode_handshake(Handshake.TRUSTED)),
        ("wait-wakes", Code.HANDSHAKE, encode_handshake_wait(2, 5000)),
        ("net-list", Code.NETWORK, encode_network(Network.LIST)),
        ("net-join", Code.NETWORK, encode_network(Network.JOIN, 7, b"tok")),
        ("net-leave", Code.NETWORK, encode_network(Network.LEAVE, 7)),
        ("net-members", Code.NETWORK, encode_network(Network.MEMBERS, 7)),
        ("net-invite", Code.NETWORK, encode_network_invite(7, 2)),
        ("net-poll-invites", Code.NETWORK, encode_network(Network.POLL_INVITES)),
        ("net-accept", Code.NETWORK, encode_network(Network.RESPOND_INVITE, 7, b"\x01")),
        ("net-reject", Code.NETWORK, encode_network(Network.RESPOND_INVITE, 7, b"\x00")),
        ("managed-status", Code.MANAGED, encode_managed(Managed.STATUS, 7)),
        ("managed-cycle", Code.MANAGED, encode_managed(Managed.CYCLE, 7)),
        ("managed-reconcile", Code.MANAGED, encode_managed(Managed.RECONCILE, 7)),
        ("policy-get", Code.MANAGED, encode_policy_get(7)),
        ("policy-set", Code.MANAGED, encode_policy_set(7, POLICY, "sesame")),
        ("mtags-get", Code.MANAGED, encode_member_tags(7, 2)),
        ("mtags-set", Code.MANAGED, encode_member_tags(7, 2, ["a"])),
        ("set-tags", Code.SET_TAGS, encode_tags(["x", "y"])),
        ("clear-tags", Code.SET_TAGS, encode_tags([])),
    ],
)
def test_requests_are_those_of_the_reference_clients(recorded: str, command: Code, payload: bytes) -> None:
    assert encode_frame(command, payload).hex() == RECORDED[recorded]
