"""A small world to test the directory in: nodes that sign, a clock, and a disk that keeps what was changed."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import attrs

from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.directory import Change, Directory, DirectorySettings, PeerInfo
from pilot_trio.wire.canonical_json import dumps
from pilot_trio.wire.registry import Message

START = 1_795_459_582.0  # unix seconds
TOKEN = "admin-secret"
DAY = 86_400.0

IDENTITIES = [Identity.from_seed(bytes([number]) * 32) for number in range(1, 160)]

# What each kind signs, by the names of its fields; the kinds that only name themselves and fields in this order.
_SIGNED = {
    "heartbeat": "heartbeat:{node_id}",
    "resolve": "resolve:{requester_id}:{node_id}",
    "request_handshake": "handshake:{from_node_id}:{to_node_id}",
    "respond_handshake": "respond:{node_id}:{peer_id}",
    "rotate_key": "rotate:{node_id}:{new_public_key}",
    "punch": "punch:{node_a}:{node_b}",
    "report_trust": "report_trust:{node_id}:{peer_id}",
    "revoke_trust": "revoke_trust:{node_id}:{peer_id}",
    "join_network": "join_network:{node_id}:{network_id}",
    "leave_network": "leave_network:{node_id}:{network_id}",
    "invite_to_network": "invite:{inviter_id}:{network_id}:{target_node_id}",
    "respond_invite": "respond_invite:{node_id}:{network_id}",
    "submit_badge": "submit_badge:{node_id}:{badge}",
}
_SIGNER = {"resolve": "requester_id", "punch": "requester_id", "request_handshake": "from_node_id"}
_SIGNER["invite_to_network"] = "inviter_id"
_FIELDS = sorted(set(re.findall(r"{(\w+)}", " ".join(_SIGNED.values()))))
NODE_ONLY = ("set_hostname", "set_visibility", "set_tags", "poll_handshakes", "deregister", "poll_invites")


@attrs.define
class World:
    settings: DirectorySettings = attrs.field(factory=lambda: DirectorySettings(admin_token=TOKEN))
    now: float = START
    keys: dict[int, Identity] = attrs.field(factory=dict)  # of registered nodes, as last known to work
    disk: dict[tuple[str, str], str] = attrs.field(factory=dict)
    directory: Directory = attrs.field(init=False)
    _connections: itertools.count[int] = attrs.field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        self.directory = Directory(self.settings, now=self.now)

    def peer(self, host: str = "192.0.2.1", *, loopback: bool = False) -> PeerInfo:
        return PeerInfo(host, 40000, next(self._connections), loopback)

    def send(self, message: Message, peer: PeerInfo | None = None) -> Message:
        """Send a message as it is; keep what changed; check what every answer must fulfil."""
        answer = self.directory.handle(message, peer or self.peer(), self.now)
        self.store(self.directory.take_changes())
        decoded = json.loads(dumps(answer))
        assert isinstance(decoded, dict)
        assert isinstance(decoded["type"], str)
        assert ("error" in decoded) == (decoded["type"] == "error")
        return decoded

    def store(self, changes: list[Change]) -> None:
        for table, key, row in changes:
            if row is None:
                self.disk.pop((table, key), None)
            else:
                self.disk[table, key] = json.dumps(row)

    def ask(self, kind: str, peer: PeerInfo | None = None, /, **fields: Any) -> Message:
        """Send a message signed as its kind demands by the node that it speaks for, if that node has a key."""
        message = {"type": kind, **fields}
        signer = self.keys.get(fields.get(_SIGNER.get(kind, "node_id"), 0))
        fields = dict.fromkeys(_FIELDS, 0) | fields
        template = _SIGNED.get(kind, f"{kind}:{{node_id}}" if kind in (*NODE_ONLY, "set_key_expiry") else "")
        if signer is not None and template:
            message.setdefault("signature", signer.sign_text(template.format(**fields)))
        return self.send(message, peer)

    def error(self, kind: str, peer: PeerInfo | None = None, /, **fields: Any) -> str:
        answer = self.ask(kind, peer, **fields)
        assert answer["type"] == "error", answer
        text = answer["error"]
        assert isinstance(text, str)
        return text

    def ok(self, kind: str, peer: PeerInfo | None = None, /, **fields: Any) -> Message:
        answer = self.ask(kind, peer, **fields)
        assert answer.pop("type") == f"{kind}_ok", answer
        return answer

    def register(self, identity: Identity | int, listen: str = "203.0.113.9:4000", **fields: Any) -> Message:
        if isinstance(identity, int):
            identity = IDENTITIES[identity]
        key = identity.public_key_b64
        peer = fields.pop("peer", None)
        signature = identity.sign_text(f"register:{listen}:{key}")
        message = {"type": "register", "listen_addr": listen, "public_key": key, "signature": signature, **fields}
        answer = self.send(message, peer)
        if answer["type"] == "register_ok":
            self.keys[answer["node_id"]] = identity
        return answer

    def nodes(self, count: int) -> None:
        """Register nodes 1 to `count`."""
        for number in range(count):
            assert self.register(number)["node_id"] == number + 1

    def network(self, name: str = "lab", owner: int = 1, **fields: Any) -> int:
        fields = {"join_rule": "open", "token": "", "node_id": owner, "name": name, **fields}
        number = self.ok("create_network", admin_token=TOKEN, **fields)["network_id"]
        assert isinstance(number, int)
        return number

    def wait(self, seconds: float) -> list[int]:
        """Let time pass as a server does that looks for silent nodes every ten seconds; return those reaped."""
        end, reaped = self.now + seconds, list[int]()
        while self.now < end:
            self.now = min(end, self.now + 10)
            reaped += self.directory.reap(self.now)
            self.store(self.directory.take_changes())
        return reaped

    def restored(self) -> Directory:
        rows = [(table, key, json.loads(row)) for (table, key), row in self.disk.items()]
        return Directory.restore(rows, self.settings, now=self.now)

    def restart(self) -> None:
        self.directory = self.restored()


MEMORY_ONLY = ("last_seen", "stale_from", "stored_seen", "verified_texts", "handed_to")


def snapshot(directory: Directory) -> dict[str, Any]:
    """Return all that a directory knows and must not forget, comparable."""
    tables = attrs.asdict(directory._tables)
    for name in ("settings", "reaped_at", "handed", "notify", "beacons", "_journal"):
        del tables[name]
    return {name: _comparable(value) for name, value in tables.items()}


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _comparable(item) for key, item in value.items() if key not in MEMORY_ONLY}
        # Boxes without anything in them are the same as none.
        return {key: item for key, item in kept.items() if item not in ({}, set())}
    return value
