"""The local protocol between clients and the daemon (`spec/ipc.md` §2, §4): codes, payloads, frames.

A frame is `u32 length`, `u8 code`, payload; the length counts the code. There is no request id: every replied command
gets exactly one reply frame, the fire-and-forget ones (`SEND`, `SEND_TO`, `CANCEL`) get none, not even an error.

Decoders take the payload (without code) and raise `DecodeError` with the text that the daemon puts into its error
frame. Trailing bytes are ignored except where noted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from pilot_trio.address import Address, ConnId, NetworkId, NodeId, Port
from pilot_trio.errors import DecodeError
from pilot_trio.wire.framing import IPC_FRAME_MAX

JSON_MAX: Final = IPC_FRAME_MAX - 64  # bytes of a JSON body; protocol, `spec/ipc.md` §5.9
SEND_DATA_MAX: Final = IPC_FRAME_MAX - 64  # stream bytes per Send or Recv frame; what 1.18.0 clients use, §9
DATAGRAM_MAX: Final = 65_535  # bytes of data in one datagram; protocol, `spec/ipc.md` §5.3
ERROR_CODE: Final = 1  # the only one there is; clients skip it


class Code(IntEnum):
    """Command and reply codes (`spec/ipc.md` §4)."""

    BIND = 0x01
    BIND_OK = 0x02
    DIAL = 0x03
    DIAL_OK = 0x04
    ACCEPT = 0x05
    SEND = 0x06
    RECV = 0x07
    CLOSE = 0x08
    CLOSE_OK = 0x09
    ERROR = 0x0A
    SEND_TO = 0x0B
    RECV_FROM = 0x0C
    INFO = 0x0D
    INFO_OK = 0x0E
    HANDSHAKE = 0x0F
    HANDSHAKE_OK = 0x10
    RESOLVE_HOSTNAME = 0x11
    RESOLVE_HOSTNAME_OK = 0x12
    SET_HOSTNAME = 0x13
    SET_HOSTNAME_OK = 0x14
    SET_VISIBILITY = 0x15
    SET_VISIBILITY_OK = 0x16
    DEREGISTER = 0x17
    DEREGISTER_OK = 0x18
    SET_TAGS = 0x19
    SET_TAGS_OK = 0x1A
    SET_WEBHOOK = 0x1B
    SET_WEBHOOK_OK = 0x1C
    NETWORK = 0x1F
    NETWORK_OK = 0x20
    HEALTH = 0x21
    HEALTH_OK = 0x22
    MANAGED = 0x23
    MANAGED_OK = 0x24
    ROTATE_KEY = 0x25
    ROTATE_KEY_OK = 0x26
    BROADCAST = 0x29
    BROADCAST_OK = 0x2A
    CANCEL = 0x2B
    PREFER_DIRECT = 0x2D
    PREFER_DIRECT_OK = 0x2E
    SUBMIT_BADGE = 0x2F
    SUBMIT_BADGE_OK = 0x30
    ENROLL_RECOVERY = 0x31
    ENROLL_RECOVERY_OK = 0x32
    SIGN_ENVELOPE = 0x33
    SIGN_ENVELOPE_OK = 0x34
    VERIFY_ENVELOPE = 0x35
    VERIFY_ENVELOPE_OK = 0x36
    UNBIND = 0x37
    UNBIND_OK = 0x38
    SEND_TO_CONFIRM = 0x39
    SEND_TO_OK = 0x3A
    BROKEN = 0x70  # ours, not the protocol's: pushed before the CLOSE_OK of a stream that did not end properly


_HEADER = struct.Struct("!IB")  # length (counts the code), code
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_TARGET = struct.Struct("!HIH")  # address (network, node), port
_CONN_HEADER = struct.Struct("!IBI")  # length, code, connection id
_ACCEPT = struct.Struct("!IBHIHIH")  # length, code, local port, connection id, remote network, remote node, remote port
_RECV_FROM = struct.Struct("!IBHIHH")  # length, code, source network, source node, source port, destination port
_pack_recv_from, _RECV_FROM_CODE = _RECV_FROM.pack, int(Code.RECV_FROM)  # for what comes by the thousand
_ACCEPT_BODY = struct.Struct("!HIHIH")  # the same without length and code, as a client reads it
_RECV_FROM_BODY = struct.Struct("!HIHH")
_BROADCAST = struct.Struct("!HHH")  # network, port, token length
SEND_TO_HEAD: Final = 1 + _TARGET.size  # bytes of a SEND_TO, its code included, that say where it goes
assert _HEADER.size == 5 and _TARGET.size == 8 and _CONN_HEADER.size == 9
assert _ACCEPT.size == 4 + 1 + 14 and _RECV_FROM.size == 4 + 1 + 10 and _BROADCAST.size == 6


class Target(NamedTuple):
    """Where a dial or a datagram goes, and for a datagram its data."""

    address: Address
    port: Port
    data: bytes = b""


class Broadcast(NamedTuple):
    """A request to send one datagram to every member of a network."""

    network: NetworkId
    port: Port
    token: bytes
    data: bytes


class Accepted(NamedTuple):
    """Payload of an `ACCEPT` push."""

    local_port: Port
    conn_id: ConnId
    remote: Address
    remote_port: Port


class ReceivedDatagram(NamedTuple):
    """Payload of a `RECV_FROM` push."""

    source: Address
    source_port: Port
    destination_port: Port
    data: bytes


def encode_frame(code: int, payload: bytes = b"") -> bytes:
    """Return a complete frame; the caller keeps the payload below `IPC_FRAME_MAX`."""
    return _HEADER.pack(1 + len(payload), code) + payload


def encode_error(text: str) -> bytes:
    """Return an error frame. Over-long texts are cut: a frame above the limit would cost the client its connection."""
    return encode_frame(Code.ERROR, b"\x00\x01" + text.encode("utf-8", "replace")[:JSON_MAX])


def decode_error(payload: bytes) -> str:
    """Return the text of an error frame."""
    return payload[2:].decode("utf-8", "replace")


def encode_port(code: int, port: int) -> bytes:
    """Return a frame whose payload is one port: `BIND`, `BIND_OK`, `UNBIND`, `UNBIND_OK`."""
    return encode_frame(code, _U16.pack(port))


def encode_conn(code: int, conn_id: int, data: bytes = b"") -> bytes:
    """Return a frame that starts with a connection id: `DIAL_OK`, `SEND`, `RECV`, `CLOSE`, `CLOSE_OK`, `BROKEN`."""
    return _CONN_HEADER.pack(5 + len(data), code, conn_id) + data


def encode_target(code: int, address: Address, port: int, data: bytes = b"") -> bytes:
    """Return a frame that starts with address and port: `DIAL`, `SEND_TO`, `SEND_TO_CONFIRM`."""
    return encode_frame(code, _TARGET.pack(address.network, address.node, port) + data)


def encode_accept(local_port: int, conn_id: int, remote: Address, remote_port: int) -> bytes:
    """Return an `ACCEPT` push."""
    return _ACCEPT.pack(15, Code.ACCEPT, local_port, conn_id, remote.network, remote.node, remote_port)


def encode_recv_from(source: Address, source_port: int, destination_port: int, data: bytes) -> bytes:
    """Return a `RECV_FROM` push."""
    return _pack_recv_from(11 + len(data), _RECV_FROM_CODE, *source, source_port, destination_port) + data


def encode_broadcast(network: int, port: int, token: bytes, data: bytes) -> bytes:
    """Return a `BROADCAST` request."""
    return encode_frame(Code.BROADCAST, _BROADCAST.pack(network, port, len(token)) + token + data)


def decode_bind(payload: bytes) -> Port:
    """Read the port of a `BIND`."""
    if len(payload) < 2:
        raise DecodeError("bind: missing port")
    return Port(_U16.unpack_from(payload)[0])


def decode_unbind(payload: bytes) -> Port:
    """Read the port of an `UNBIND`: exactly two bytes."""
    if len(payload) != 2:
        raise DecodeError("unbind: port is required")
    return Port(_U16.unpack(payload)[0])


def decode_dial(payload: bytes) -> Target:
    """Read the destination of a `DIAL`."""
    if len(payload) < _TARGET.size:
        raise DecodeError("dial: missing address/port")
    network, node, port = _TARGET.unpack_from(payload)
    return Target(Address(network, node), port)


def decode_send_to(payload: bytes) -> Target:
    """Read destination and data of a `SEND_TO` or `SEND_TO_CONFIRM`."""
    if len(payload) < _TARGET.size:
        raise DecodeError("sendto: missing header")
    network, node, port = _TARGET.unpack_from(payload)
    return Target(Address(network, node), port, payload[_TARGET.size :])


def read_send_to(frames: Sequence[bytes]) -> tuple[Address, Port, list[bytes]]:
    """Read what `SEND_TO` frames that begin with the same `SEND_TO_HEAD` bytes say: where to, and the data of each."""
    frame = frames[0]
    if len(frame) < SEND_TO_HEAD:
        raise DecodeError("sendto: missing header")
    network, node, port = _TARGET.unpack_from(frame, 1)
    return Address(network, node), port, [frame[SEND_TO_HEAD:] for frame in frames]


def decode_close(payload: bytes) -> ConnId:
    """Read the connection id of a `CLOSE`."""
    if len(payload) < 4:
        raise DecodeError("close: missing conn_id")
    return ConnId(_U32.unpack_from(payload)[0])


def decode_conn(payload: bytes) -> tuple[ConnId, bytes]:
    """Read connection id and data of a `SEND`, `RECV`, `DIAL_OK` or `CLOSE_OK`."""
    if len(payload) < 4:
        raise DecodeError("missing conn_id")
    return ConnId(_U32.unpack_from(payload)[0]), payload[4:]


def decode_broadcast(payload: bytes) -> Broadcast:
    """Read a `BROADCAST` request."""
    if len(payload) < _BROADCAST.size:
        raise DecodeError("broadcast: missing header")
    network, port, token_length = _BROADCAST.unpack_from(payload)
    data_at = _BROADCAST.size + token_length
    if len(payload) < data_at:
        raise DecodeError("broadcast: truncated token")
    return Broadcast(network, port, payload[_BROADCAST.size : data_at], payload[data_at:])


def decode_prefer_direct(payload: bytes) -> NodeId:
    """Read the node of a `PREFER_DIRECT`: exactly four bytes."""
    if len(payload) != 4:
        raise DecodeError("prefer_direct: payload must be 4 bytes (node_id)")
    return NodeId(_U32.unpack(payload)[0])


def decode_accept(payload: bytes) -> Accepted:
    """Read an `ACCEPT` push (client side)."""
    if len(payload) < 14:
        raise DecodeError(f"accept: {len(payload)} bytes, want 14")
    local_port, conn_id, network, node, remote_port = _ACCEPT_BODY.unpack_from(payload)
    return Accepted(local_port, conn_id, Address(network, node), remote_port)


def decode_recv_from(payload: bytes) -> ReceivedDatagram:
    """Read a `RECV_FROM` push (client side)."""
    if len(payload) < 10:
        raise DecodeError(f"recvfrom: {len(payload)} bytes, want at least 10")
    network, node, source_port, destination_port = _RECV_FROM_BODY.unpack_from(payload)
    return ReceivedDatagram(Address(network, node), source_port, destination_port, payload[10:])
