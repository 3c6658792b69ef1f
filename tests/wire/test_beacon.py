from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.errors import DecodeError, LocalProtocolError
from pilot_trio.wire import beacon
from pilot_trio.wire.beacon import (
    BEACON_TYPE_END,
    BeaconMessage,
    BeaconType,
    Discover,
    DiscoverReply,
    Notify,
    NotifyKind,
    PunchCommand,
    PunchGrant,
    PunchRequest,
    Relay,
    RelayDelivery,
    Sync,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "tunnel.json").read_text())["beacon"]

nodes = st.integers(0, 0xFFFF_FFFF).map(NodeId)
hosts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str).map(beacon.normalise_host)
ports = st.integers(0, 0xFFFF)
frames = st.binary(max_size=64)
keys = st.just(b"") | st.binary(min_size=32, max_size=32)
grants = st.builds(PunchGrant, st.integers(0, (1 << 64) - 1), st.binary(min_size=64, max_size=64))
messages: st.SearchStrategy[BeaconMessage] = st.one_of(
    st.builds(Discover, nodes, keys, multi=st.booleans()),
    st.builds(DiscoverReply, hosts, ports),
    st.builds(PunchRequest, nodes, nodes, st.none() | grants),
    st.builds(PunchCommand, hosts, ports),
    st.builds(Relay, nodes, nodes, frames),
    st.builds(RelayDelivery, nodes, frames, st.none() | nodes),
    st.builds(Sync, st.integers(0, 0xFFFF_FFFF), st.lists(nodes, max_size=5).map(tuple)),
    st.builds(Notify, st.integers(0, 0xFF)),
)


def recorded() -> list[tuple[str, BeaconMessage]]:
    """Recorded datagrams (hex) with the value that each means."""
    relay, grant, sync = VECTORS["relay"], VECTORS["punch_request_with_grant"], VECTORS["sync"]
    source, target, inner = NodeId(relay["src"]), NodeId(relay["dst"]), bytes.fromhex(relay["inner"])
    keyed = VECTORS["discover_with_pubkey"]["datagram"]
    return [
        *((v["datagram"], Discover(v["node_id"])) for v in VECTORS["discover"]),
        *((v["datagram"], DiscoverReply(v["ip"], v["port"])) for v in VECTORS["discover_reply"]),
        *((v["datagram"], PunchRequest(v["requester"], v["target"])) for v in VECTORS["punch_request"]),
        *((v["datagram"], PunchCommand(v["ip"], v["port"])) for v in VECTORS["punch_command"]),
        (
            grant["datagram"],
            PunchRequest(
                grant["requester"],
                grant["target"],
                PunchGrant(grant["expiry"], bytes.fromhex(grant["datagram"])[-64:]),
            ),
        ),
        (relay["datagram"], Relay(source, target, inner)),
        (relay["delivered"], RelayDelivery(source, inner)),
        (relay["delivered_dest"], RelayDelivery(source, inner, target)),
        (sync["datagram"], Sync(sync["beacon_id"], tuple(sync["nodes"]))),
        (VECTORS["discover_ex"]["datagram"], Discover(VECTORS["discover_ex"]["node_id"], multi=True)),
        (VECTORS["notify_handshake"], Notify(NotifyKind.HANDSHAKE)),
        (keyed, Discover(NodeId(7), bytes.fromhex(keyed)[-32:])),
    ]


@pytest.mark.parametrize("datagram, message", recorded())
def test_recorded_datagrams_are_read_and_written_byte_for_byte(datagram: str, message: BeaconMessage) -> None:
    assert beacon.decode(bytes.fromhex(datagram)) == message
    assert message.encode().hex() == datagram


def test_recorded_punch_grant_verifies_over_its_text() -> None:
    vector = VECTORS["punch_request_with_grant"]
    message = beacon.decode(bytes.fromhex(vector["datagram"]))
    assert isinstance(message, PunchRequest) and message.grant is not None
    text = beacon.punch_grant_text(message.requester, message.target, message.grant.expiry)
    assert text.decode() == vector["signed_ascii"]
    target = Identity.from_seed(bytes.fromhex(vector["target_ed25519_seed"]))
    assert verify(target.public_key, message.grant.signature, text)


@given(messages)
def test_decode_inverts_encode(message: BeaconMessage) -> None:
    datagram = message.encode()
    assert datagram[0] < BEACON_TYPE_END
    assert beacon.decode(datagram) == message


@given(messages, st.binary(max_size=7))
def test_trailing_bytes_are_ignored_except_in_frames(message: BeaconMessage, trailing: bytes) -> None:
    decoded = beacon.decode(message.encode() + trailing)
    if isinstance(message, Relay | RelayDelivery):
        assert decoded == message._replace(frame=message.frame + trailing)
    else:
        assert decoded == message


@given(st.binary(max_size=100))
def test_garbage_gives_a_value_or_a_decode_error(datagram: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert beacon.decode(beacon.decode(datagram).encode())


@given(st.sampled_from(BeaconType), st.binary(max_size=100))
def test_garbage_of_a_known_type_gives_a_value_or_a_decode_error(kind: BeaconType, rest: bytes) -> None:
    with contextlib.suppress(DecodeError):
        beacon.decode(bytes([kind]) + rest)


@given(messages, st.data())
def test_truncation_gives_a_value_or_a_decode_error(message: BeaconMessage, data: st.DataObject) -> None:
    datagram = message.encode()
    cut = data.draw(st.integers(0, len(datagram) - 1))
    try:
        decoded = beacon.decode(datagram[:cut])
    except DecodeError:
        return
    # Only what is optional can be missing.
    assert isinstance(decoded, Discover | PunchRequest | Relay | RelayDelivery)


@pytest.mark.parametrize(
    "message, fixed",
    [
        (Discover(NodeId(1)), 5),
        (DiscoverReply("10.0.0.1", 1), 8),
        (PunchRequest(NodeId(1), NodeId(2)), 9),
        (Relay(NodeId(1), NodeId(2), b""), 9),
        (RelayDelivery(NodeId(1), b""), 5),
        (RelayDelivery(NodeId(1), b"", NodeId(2)), 9),
        (Sync(1, (NodeId(1), NodeId(2))), 15),
        (Notify(1), 2),
    ],
)
def test_one_byte_less_than_the_layout_is_refused(message: BeaconMessage, fixed: int) -> None:
    assert len(message.encode()) == fixed
    assert beacon.decode(message.encode()) == message
    with pytest.raises(DecodeError, match="too short"):
        beacon.decode(message.encode()[:-1])


@pytest.mark.parametrize("datagram", [b"", b"\x00" * 20, b"\x0b" * 20, b"\x0f", b"PILS"])
def test_other_first_bytes_are_refused(datagram: bytes) -> None:
    with pytest.raises(DecodeError):
        beacon.decode(datagram)


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17, 255])
def test_addresses_have_four_or_sixteen_bytes(length: int) -> None:
    with pytest.raises(DecodeError, match=f"address of {length} bytes"):
        beacon.decode(bytes([BeaconType.PUNCH_COMMAND, length]) + b"\x01" * 300)


def test_ipv4_mapped_addresses_become_ipv4_in_both_directions() -> None:
    mapped = ipaddress.ip_address("::ffff:192.0.2.7").packed
    assert beacon.decode(b"\x02\x10" + mapped + b"\x00\x09") == DiscoverReply("192.0.2.7", 9)
    assert DiscoverReply("::ffff:192.0.2.7", 9).encode() == b"\x02\x04\xc0\x00\x02\x07\x00\x09"


def test_a_zone_is_not_sent() -> None:
    assert DiscoverReply("fe80::1%eth0", 9) == DiscoverReply("fe80::1", 9)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Discover(NodeId(-1)),
        lambda: Discover(NodeId(1 << 32)),
        lambda: Discover(NodeId(1), b"short"),
        lambda: DiscoverReply("example.org", 1),
        lambda: DiscoverReply("", 1),
        lambda: DiscoverReply("127.0.0.1", 65_536),
        lambda: PunchGrant(1 << 64, b"\0" * 64),
        lambda: PunchGrant(1, b"\0" * 63),
        lambda: Notify(256),
        lambda: Sync(1, (NodeId(1 << 32),)),
    ],
)
def test_what_cannot_be_sent_cannot_be_made(build: object) -> None:
    assert callable(build)
    with pytest.raises(LocalProtocolError):
        build()


def test_gossip_is_bounded_by_its_count_field() -> None:
    assert len(Sync(1, (NodeId(1),) * 0xFFFF).encode()) == 7 + 4 * 0xFFFF
    with pytest.raises(ValueError, match="nodes"):
        Sync(1, (NodeId(1),) * 0x1_0000)
