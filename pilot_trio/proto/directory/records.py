"""The rows of the directory: what is known, in the form in which it is kept and stored.

A row is a JSON object with the fields of its class; `from_row` refuses anything else, so a damaged or foreign store is
noticed when it is loaded. Fields that are no arguments of their class (`init=False`) live in memory only.
"""

from __future__ import annotations

import functools
from typing import Any, Final, TypeVar

import attrs

from pilot_trio.address import NodeId
from pilot_trio.errors import DecodeError

Row = dict[str, Any]
T = TypeVar("T", bound=attrs.AttrsInstance)

ROLES: Final = ("owner", "admin", "member")  # highest first; §3.3


@attrs.define
class Binding:
    """The permanent tie between a node id and a key. It outlives the node: deregistered or reaped, the id stays taken."""

    node_id: NodeId
    public_key: str  # canonical base64
    created_at: float
    owner: str = ""  # informational: several nodes may share one; §4.1 rule 4
    verified: bool = False  # the key has signed a registration: unsigned ones are refused from now on
    previous_key: str = ""  # lets a rotation be repeated whose answer was lost
    rotated_at: float | None = None
    rotations: int = 0
    expires_at: float | None = None
    commitment: str = ""  # of the enrolled recovery; kept while the node is away, which is when it is needed


@attrs.frozen
class Badge:
    """A verified claim about who runs a node (§8)."""

    text: str
    signature: str
    provider: str
    verified_at: float


@attrs.define
class Node:
    """A live node: registered, and heard of lately."""

    node_id: NodeId
    endpoint: str  # host:port as stored, that is after the private host was replaced
    last_seen: float  # unix seconds; written lazily, so that a heartbeat costs no disk
    version: str = ""
    lan_addrs: list[str] = attrs.field(factory=list)
    relay_only: bool = False
    public: bool = False
    hostname: str = ""
    tags: list[str] = attrs.field(factory=list)
    badge: Badge | None = None
    stale_from: float = attrs.field(default=0.0, init=False)  # counts as seen then: the grace after a restart
    stored_seen: float = attrs.field(default=0.0, init=False)
    verified_texts: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)  # {signed text: its signature}

    def heard(self, now: float) -> None:
        """Note a sign of life."""
        self.last_seen = self.stale_from = now


@attrs.define
class Membership:
    """One node in one network."""

    role: str = "member"
    tags: list[str] = attrs.field(factory=list)


@attrs.define
class NetworkRecord:
    """A network other than the backbone, without its members."""

    network_id: int
    name: str
    created_at: float
    join_rule: str = "open"
    token: str = attrs.field(default="", repr=False)
    enterprise: bool = False
    admin_token: str = attrs.field(default="", repr=False)
    max_members: int = 0  # 0: no limit
    allowed_ports: list[int] = attrs.field(factory=list)  # empty: all
    description: str = ""
    rules: Row | None = None  # of a managed network
    expr_policy: Row | None = None


@attrs.define
class Mail:
    """A handshake request or an answer to one, waiting for its receiver to poll."""

    timestamp: float
    justification: str = ""  # of a request
    accept: bool = False  # of an answer
    handed_to: int | None = attrs.field(default=None, init=False)  # connection whose poll carried it away


@attrs.define
class Invite:
    """An invitation into a network, waiting for its answer."""

    inviter: NodeId
    timestamp: float


def to_row(record: attrs.AttrsInstance) -> Row:
    """Return the stored form of a record. It shares nothing with it that may change: a thread writes it later."""
    row = {name: getattr(record, name) for name in _stored_fields(type(record))}
    for name, value in row.items():
        if isinstance(value, list):
            row[name] = value.copy()
        elif isinstance(value, Badge):
            row[name] = to_row(value)
    return row


@functools.cache
def _stored_fields(cls: type[attrs.AttrsInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(cls) if field.init)


def from_row(cls: type[T], row: Any) -> T:
    """Rebuild a record; raise `DecodeError` for a row that is not one."""
    try:
        record = cls(**row)
    except TypeError as exc:
        raise DecodeError(f"not a stored {cls.__name__}: {exc}") from exc
    if isinstance(record, Node) and record.badge is not None:
        record.badge = from_row(Badge, record.badge)
    return record
