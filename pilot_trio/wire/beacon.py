"""Datagrams between a node and its beacon (`spec/tunnel.md` §13.1).

One type byte, then a fixed layout; all integers big-endian. Bytes behind a layout are ignored. They share the node's one
UDP socket with tunnel frames, which never start with a byte below `BEACON_TYPE_END`.

`decode` raises `DecodeError` and nothing else. The values refuse what cannot be sent, so `encode` cannot fail.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

import attrs

from pilot_trio.address import NodeId
from pilot_trio.errors import DecodeError, LocalProtocolError

BEACON_TYPE_END: Final = 0x10  # first bytes below it mark a beacon message, whatever its length; protocol, §1
PUBLIC_KEY_SIZE: Final = 32  # bytes; Ed25519
GRANT_SIGNATURE_SIZE: Final = 64  # bytes; Ed25519
SYNC_NODES_MAX: Final = 0xFFFF  # node ids in one gossip message; its count is a u16


class BeaconType(IntEnum):
    """The first byte."""

    DISCOVER = 0x01
    DISCOVER_REPLY = 0x02
    PUNCH_REQUEST = 0x03
    PUNCH_COMMAND = 0x04
    RELAY = 0x05
    RELAY_DELIVERY = 0x06
    SYNC = 0x07
    DISCOVER_MULTI = 0x08
    RELAY_DELIVERY_MULTI = 0x09
    NOTIFY = 0x0A


class NotifyKind(IntEnum):
    """What a notify is about; receivers ignore kinds that they do not know."""

    HANDSHAKE = 0x01  # a relayed trust handshake waits at the registry


# All layouts begin with the type byte.
#   discover                   node id (u32) [, public key (32)]
#   discover reply, punch      length of the address (u8: 4 or 16), address, port (u16)
#   punch request              requester id, target id (u32 each) [, expiry (u64, unix seconds), signature (64)]
#   relay                      sender id, destination id (u32 each), tunnel frame
#   relay delivery             sender id (u32), tunnel frame
#   relay delivery, multi      sender id, destination id (u32 each), tunnel frame
#   sync                       beacon id (u32), count (u16), count node ids (u32 each)
#   notify                     kind (u8)
_ONE_ID = struct.Struct("!BI")
_TWO_IDS = struct.Struct("!BII")
_GRANT = struct.Struct(f"!Q{GRANT_SIGNATURE_SIZE}s")
_ADDRESS_LENGTH = struct.Struct("!BB")
_PORT = struct.Struct("!H")
_SYNC = struct.Struct("!BIH")
_NOTIFY = struct.Struct("!BB")
assert _ONE_ID.size == 5 and _TWO_IDS.size == 9 and _GRANT.size == 72 and _SYNC.size == 7 and _NOTIFY.size == 2


def normalise_host(host: str) -> str:
    """Return an address literal in its one form: IPv4-mapped IPv6 as IPv4, no zone, lower case.

    A socket that serves both families reports IPv4 sources in mapped form; peers expect four bytes.
    Raises `LocalProtocolError` if it is not a literal.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError as exc:
        raise LocalProtocolError(f"{host!r} is not an IP address") from exc
    return str(getattr(address, "ipv4_mapped", None) or address)


def _range_checked(maximum: int) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if not 0 <= value <= maximum:
            raise LocalProtocolError(f"{attribute.name} {value} is not in 0..{maximum}")

    return check


def _size_checked(*sizes: int) -> Callable[[object, attrs.Attribute[bytes], bytes], None]:
    def check(_instance: object, attribute: attrs.Attribute[bytes], value: bytes) -> None:
        if len(value) not in sizes:
            raise LocalProtocolError(f"{attribute.name} has {len(value)} bytes, not {' or '.join(map(str, sizes))}")

    return check


_u8 = _range_checked(0xFF)
_u16 = _range_checked(0xFFFF)
_u32 = _range_checked(0xFFFF_FFFF)
_u64 = _range_checked((1 << 64) - 1)


@attrs.frozen
class Discover:
    """Tell me where you see me, and remember it for `node` (0: not registered yet)."""

    node: NodeId = attrs.field(validator=_u32)
    public_key: bytes = attrs.field(default=b"", repr=bytes.hex, validator=_size_checked(0, PUBLIC_KEY_SIZE))
    multi: bool = False  # wants relayed frames with their destination: an endpoint that serves several nodes

    def encode(self) -> bytes:
        """Return the datagram."""
        kind = BeaconType.DISCOVER_MULTI if self.multi else BeaconType.DISCOVER
        return _ONE_ID.pack(kind, self.node) + self.public_key


@attrs.frozen
class DiscoverReply:
    """Where the beacon saw the sender of a discover."""

    host: str = attrs.field(converter=normalise_host)
    port: int = attrs.field(validator=_u16)

    def encode(self) -> bytes:
        """Return the datagram."""
        return _encode_endpoint(BeaconType.DISCOVER_REPLY, self.host, self.port)


@attrs.frozen
class PunchGrant:
    """The target's permission to be punched at, where a beacon demands one (`spec/tunnel.md` §14.3)."""

    expiry: int = attrs.field(validator=_u64)  # unix seconds
    signature: bytes = attrs.field(repr=bytes.hex, validator=_size_checked(GRANT_SIGNATURE_SIZE))


def punch_grant_text(requester: NodeId, target: NodeId, expiry: int) -> bytes:
    """Return what the target of a punch signs to permit it until `expiry` (unix seconds)."""
    return b"punch-grant:%d:%d:%d" % (requester, target, expiry)


@attrs.frozen
class PunchRequest:
    """Tell both nodes each other's endpoint so that they can open their NATs at the same time."""

    requester: NodeId = attrs.field(validator=_u32)
    target: NodeId = attrs.field(validator=_u32)
    grant: PunchGrant | None = None

    def encode(self) -> bytes:
        """Return the datagram."""
        grant = b"" if self.grant is None else _GRANT.pack(self.grant.expiry, self.grant.signature)
        return _TWO_IDS.pack(BeaconType.PUNCH_REQUEST, self.requester, self.target) + grant


@attrs.frozen
class PunchCommand:
    """Send punches to this endpoint now."""

    host: str = attrs.field(converter=normalise_host)
    port: int = attrs.field(validator=_u16)

    def encode(self) -> bytes:
        """Return the datagram."""
        return _encode_endpoint(BeaconType.PUNCH_COMMAND, self.host, self.port)


class Relay(NamedTuple):
    """A tunnel frame to pass on. One is made per packet, so it is a tuple; `sender` is a claim, nobody verifies it."""

    sender: NodeId
    destination: NodeId
    frame: bytes

    def encode(self) -> bytes:
        """Return the datagram."""
        return _TWO_IDS.pack(BeaconType.RELAY, self.sender, self.destination) + self.frame


class RelayDelivery(NamedTuple):
    """A tunnel frame that was passed on; with its destination if the receiver asked for that (`Discover.multi`)."""

    sender: NodeId
    frame: bytes
    destination: NodeId | None = None

    def encode(self) -> bytes:
        """Return the datagram."""
        if self.destination is None:
            return _ONE_ID.pack(BeaconType.RELAY_DELIVERY, self.sender) + self.frame
        return _TWO_IDS.pack(BeaconType.RELAY_DELIVERY_MULTI, self.sender, self.destination) + self.frame


@attrs.frozen
class Sync:
    """Gossip between beacons: the nodes that `beacon` can reach."""

    beacon: int = attrs.field(validator=_u32)
    nodes: tuple[NodeId, ...] = attrs.field(
        validator=[attrs.validators.max_len(SYNC_NODES_MAX), attrs.validators.deep_iterable(_u32)]
    )

    def encode(self) -> bytes:
        """Return the datagram."""
        count = len(self.nodes)
        return _SYNC.pack(BeaconType.SYNC, self.beacon, count) + struct.pack(f"!{count}I", *self.nodes)


@attrs.frozen
class Notify:
    """Something waits for the receiver at the registry; see `NotifyKind`."""

    kind: int = attrs.field(validator=_u8)

    def encode(self) -> bytes:
        """Return the datagram."""
        return _NOTIFY.pack(BeaconType.NOTIFY, self.kind)


BeaconMessage = (
    Discover | DiscoverReply | PunchRequest | PunchCommand | Relay | RelayDelivery | Sync | Notify
)  # everything that `decode` returns


def decode(datagram: bytes) -> BeaconMessage:
    """Read one beacon message; raise `DecodeError` if it is none, or too short for its type."""
    if not datagram:
        raise DecodeError("empty beacon message")
    decoder = _DECODERS.get(datagram[0])
    if decoder is None:
        raise DecodeError(f"unknown beacon message type 0x{datagram[0]:02x}")
    try:
        return decoder(datagram)
    except struct.error:
        raise DecodeError(f"beacon message 0x{datagram[0]:02x} too short: {len(datagram)} bytes") from None


def _encode_endpoint(kind: BeaconType, host: str, port: int) -> bytes:
    packed = ipaddress.ip_address(host).packed
    return _ADDRESS_LENGTH.pack(kind, len(packed)) + packed + _PORT.pack(port)


def _decode_endpoint(datagram: bytes) -> tuple[str, int]:
    _, length = _ADDRESS_LENGTH.unpack_from(datagram)
    if length not in (4, 16):
        raise DecodeError(f"beacon message 0x{datagram[0]:02x}: address of {length} bytes")
    (port,) = _PORT.unpack_from(datagram, _ADDRESS_LENGTH.size + length)
    packed = datagram[_ADDRESS_LENGTH.size : _ADDRESS_LENGTH.size + length]
    return str(ipaddress.ip_address(packed)), port


def _decode_discover(datagram: bytes) -> Discover:
    kind, node = _ONE_ID.unpack_from(datagram)
    key = datagram[_ONE_ID.size : _ONE_ID.size + PUBLIC_KEY_SIZE]
    # A partial key is trailing bytes like any other: the key is optional, so its absence is not an error.
    return Discover(node, key if len(key) == PUBLIC_KEY_SIZE else b"", multi=kind == BeaconType.DISCOVER_MULTI)


def _decode_punch_request(datagram: bytes) -> PunchRequest:
    _, requester, target = _TWO_IDS.unpack_from(datagram)
    if len(datagram) < _TWO_IDS.size + _GRANT.size:
        return PunchRequest(requester, target)
    return PunchRequest(requester, target, PunchGrant(*_GRANT.unpack_from(datagram, _TWO_IDS.size)))


def _decode_relay(datagram: bytes) -> Relay:
    _, sender, destination = _TWO_IDS.unpack_from(datagram)
    return Relay(sender, destination, datagram[_TWO_IDS.size :])


def _decode_relay_delivery(datagram: bytes) -> RelayDelivery:
    _, sender = _ONE_ID.unpack_from(datagram)
    return RelayDelivery(sender, datagram[_ONE_ID.size :])


def _decode_relay_delivery_multi(datagram: bytes) -> RelayDelivery:
    _, sender, destination = _TWO_IDS.unpack_from(datagram)
    return RelayDelivery(sender, datagram[_TWO_IDS.size :], destination)


def _decode_sync(datagram: bytes) -> Sync:
    _, beacon, count = _SYNC.unpack_from(datagram)
    return Sync(beacon, struct.unpack_from(f"!{count}I", datagram, _SYNC.size))


_DECODERS: Final[dict[int, Callable[[bytes], BeaconMessage]]] = {
    BeaconType.DISCOVER: _decode_discover,
    BeaconType.DISCOVER_REPLY: lambda datagram: DiscoverReply(*_decode_endpoint(datagram)),
    BeaconType.PUNCH_REQUEST: _decode_punch_request,
    BeaconType.PUNCH_COMMAND: lambda datagram: PunchCommand(*_decode_endpoint(datagram)),
    BeaconType.RELAY: _decode_relay,
    BeaconType.RELAY_DELIVERY: _decode_relay_delivery,
    BeaconType.SYNC: _decode_sync,
    BeaconType.DISCOVER_MULTI: _decode_discover,
    BeaconType.RELAY_DELIVERY_MULTI: _decode_relay_delivery_multi,
    BeaconType.NOTIFY: lambda datagram: Notify(_NOTIFY.unpack_from(datagram)[1]),
}
