"""What the daemon says of itself, as values (`spec/ipc.md` §5.9). Everything else it says stays a plain `dict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from pilot_trio.address import Address, ConnId, NodeId, Port, SocketAddress
from pilot_trio.errors import DecodeError, RemoteProtocolError
from pilot_trio.wire.info_rows import with_paths

_T = TypeVar("_T")


def decode_json(payload: bytes) -> dict[str, Any]:
    """Read the JSON object of a reply; raise `RemoteProtocolError` if it is none."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"the daemon's answer is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"the daemon's answer is not a JSON object but {type(value).__name__}")
    return value


@attrs.frozen
class Info:
    """What the daemon is and has. `raw` is its whole answer, with the lists of peers and connections."""

    node_id: NodeId  # 0 while the registry has not given it one
    address: Address
    hostname: str
    endpoint: str  # own UDP endpoint as registered, host:port
    version: str  # the dialect spoken, not the program
    public_key: str  # Ed25519, base64
    uptime: float  # seconds
    peers: int
    connections: int
    ports: int  # bound ones, built-in services included
    features: frozenset[str]  # empty for daemons before 1.17
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def decode(cls, payload: bytes) -> Info:
        """Read the reply; raise `RemoteProtocolError` if it lacks what every daemon sends."""
        raw = decode_json(payload)
        return cls(
            node_id=NodeId(take(raw, "node_id", int)),
            address=take_address(raw),
            hostname=take(raw, "hostname", str, ""),
            endpoint=take(raw, "endpoint", str, ""),
            version=take(raw, "version", str, ""),
            public_key=take(raw, "public_key", str, ""),
            uptime=float(take(raw, "uptime_secs", (int, float), 0)),
            peers=take(raw, "peers", int, 0),
            connections=take(raw, "connections", int, 0),
            ports=take(raw, "ports", int, 0),
            features=frozenset(name for name in take(raw, "features", list, []) if isinstance(name, str)),
            raw=raw,
        )

    def streams(self) -> list[PilotStreamStatistics]:
        """Return what the daemon knows of its streams, oldest first; of very many it lists as many as fit a frame."""
        lists = (take(self.raw, name, list, []) for name in ("conn_list", "peer_list"))
        return [PilotStreamStatistics.decode(row) for row in with_paths(*lists)]


@attrs.frozen
class PilotStreamStatistics:
    """What the daemon knows of one stream, at most a fifth of a second old. `raw` is its whole row.

    A path by relay has a reason; the original's daemon does not tell it.
    """

    conn_id: ConnId
    state: str  # ESTABLISHED, FIN_WAIT, TIME_WAIT, …
    local_port: Port
    remote: SocketAddress
    relay: bool  # packets take the way through the beacon
    relay_reason: str  # why
    srtt: float  # seconds, smoothed round trip; 0 while nothing was measured
    rttvar: float  # seconds, its variation
    cwnd: int  # bytes that the path is thought to hold
    in_flight: int  # bytes sent and not acknowledged
    retransmits: int  # segments sent again, after a timeout or because the peer reported them missing
    bytes_sent: int
    bytes_received: int
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def decode(cls, row: Mapping[str, Any]) -> PilotStreamStatistics:
        """Read a row of `conn_list` with its path; raise `RemoteProtocolError` if it lacks what every daemon sends."""
        number = (int, float)
        return cls(
            conn_id=ConnId(take(row, "id", int)),
            state=take(row, "state", str),
            local_port=Port(take(row, "local_port", int)),
            remote=SocketAddress(take_address(row, "remote_addr"), Port(take(row, "remote_port", int))),
            relay=bool(row.get("relay")),
            relay_reason=take(row, "relay_reason", str, ""),
            srtt=float(take(row, "srtt_ms", number, 0)) / 1000,
            rttvar=float(take(row, "rttvar_ms", number, 0)) / 1000,
            cwnd=take(row, "cong_win", int, 0),
            in_flight=take(row, "in_flight", int, 0),
            retransmits=take(row, "retransmits", int, 0) + take(row, "fast_retx", int, 0),
            bytes_sent=take(row, "bytes_sent", int, 0),
            bytes_received=take(row, "bytes_recv", int, 0),
            raw=row,
        )


@attrs.frozen
class Health:
    """A snapshot that the daemon takes without waiting for anything. `raw` is its whole answer."""

    status: str  # "ok"
    uptime: int  # seconds
    connections: int
    peers: int
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def decode(cls, payload: bytes) -> Health:
        """Read the reply; raise `RemoteProtocolError` if it lacks what every daemon sends."""
        raw = decode_json(payload)
        return cls(
            status=take(raw, "status", str),
            uptime=take(raw, "uptime_seconds", int, 0),
            connections=take(raw, "connections", int, 0),
            peers=take(raw, "peers", int, 0),
            raw=raw,
        )


@attrs.frozen
class Resolved:
    """A node found by name. `raw` is the registry's whole answer."""

    node_id: NodeId
    address: Address
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def decode(cls, payload: bytes) -> Resolved:
        """Read the reply; raise `RemoteProtocolError` if it names no node."""
        raw = decode_json(payload)
        return cls(NodeId(take(raw, "node_id", int)), take_address(raw), raw)


_REQUIRED: Any = object()


def take(raw: Mapping[str, Any], key: str, kind: type[_T] | tuple[type, ...], default: Any = _REQUIRED) -> _T:
    """Return `raw[key]` if it has the right type; the default if it is absent or null."""
    value = raw.get(key)
    if value is None and default is not _REQUIRED:
        value = default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RemoteProtocolError(f"the daemon's answer has {key!r} = {value!r}")
    return value  # type: ignore[return-value] # mypy does not narrow by a tuple of types


def take_address(raw: Mapping[str, Any], key: str = "address") -> Address:
    """Return `raw[key]` as an address."""
    try:
        return Address.parse(take(raw, key, str))
    except DecodeError as exc:
        raise RemoteProtocolError(f"the daemon's answer: {exc}") from exc
