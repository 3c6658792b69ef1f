"""Names, tags and visibility (`spec/registry.md` §4.5)."""

from __future__ import annotations

import re
from typing import Any, Final

from pilot_trio.address import BACKBONE, Address, quote
from pilot_trio.proto.directory.auth import live_node, proven_node, require_signature, require_signature_or_admin
from pilot_trio.proto.directory.records import Node
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message, node_text

NAME_MAX: Final = 63  # characters of a host or network name; spec registry §4.5, §7
TAGS_MAX: Final = 10  # tags per node, and per member of a network; spec registry §2.6
TAG_MAX: Final = 32  # characters of a tag; spec registry §2.6
RESERVED_HOSTNAMES: Final = frozenset({"localhost", "backbone", "broadcast"})

LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)  # of host and network names
_TAG = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)


def check_hostname(hostname: str) -> None:
    """Raise `Refused` for a name that no node can have."""
    if len(hostname) > NAME_MAX:
        raise Refused(f"invalid hostname: hostname too long (max {NAME_MAX} chars)")
    if not LABEL.fullmatch(hostname):
        rule = "must be lowercase alphanumeric with hyphens, start/end with alphanumeric"
        raise Refused(f"invalid hostname: hostname {rule}")
    if hostname in RESERVED_HOSTNAMES:
        raise Refused(f"invalid hostname: hostname {quote(hostname)} is reserved")


def claim_hostname(tables: Tables, node: Node, hostname: str) -> None:
    """Give `node` a name; raise `Refused` if it is invalid or another node's."""
    check_hostname(hostname)
    holder = tables.by_hostname.get(hostname)
    if holder not in (None, node.node_id):
        raise Refused(f"hostname {quote(hostname)} already in use by node {holder}")
    if hostname != node.hostname:
        tables.set_hostname(node, hostname)


def checked_tags(given: Any, too_many: str) -> list[str]:
    """Return a request's tags in order, once each, without their leading `#`; raise `Refused`.

    `too_many` is what the text calls them: `tags` or `member tags`.
    """
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(tag, str) for tag in given):
        raise Refused("invalid tags: must be a list of strings")
    if len(given) > TAGS_MAX:
        raise Refused(f"too many {too_many} (max {TAGS_MAX})")
    tags = dict.fromkeys(tag.removeprefix("#") for tag in given)
    for tag in tags:
        if not tag:
            raise Refused("empty tag not allowed")
        if len(tag) > TAG_MAX:
            raise Refused(f"tag {quote(tag)} too long (max {TAG_MAX} chars)")
        if not _TAG.fullmatch(tag):
            raise Refused(f"tag {quote(tag)} must be lowercase alphanumeric with hyphens")
    return list(tags)


def _set_hostname(tables: Tables, request: Request) -> Message:
    hostname = request.text("hostname")
    if hostname:
        check_hostname(hostname)
    node = live_node(tables, request.node())
    require_signature_or_admin(tables, request, node, node_text("set_hostname", node.node_id))
    if hostname:
        claim_hostname(tables, node, hostname)
    elif node.hostname:
        tables.set_hostname(node, "")
    return {"node_id": node.node_id, "hostname": hostname}


def _set_visibility(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    require_signature_or_admin(tables, request, node, node_text("set_visibility", node.node_id))
    public = request.flag("public")
    if public != node.public:
        node.public = public
        tables.changed("nodes", node.node_id)
    return {"node_id": node.node_id, "visibility": "public" if public else "private"}


def _set_tags(tables: Tables, request: Request) -> Message:
    tags = checked_tags(request.raw("tags"), "tags")
    node = live_node(tables, request.node())
    require_signature_or_admin(tables, request, node, node_text("set_tags", node.node_id))
    if tags != node.tags:
        node.tags = tags
        tables.changed("nodes", node.node_id)
    return {"node_id": node.node_id, "tags": tags}


def _resolve_hostname(tables: Tables, request: Request) -> Message:
    hostname = request.text("hostname")
    if not hostname:
        raise Refused("hostname required")
    node_id = tables.by_hostname.get(hostname)
    node = None if node_id is None else tables.nodes[node_id]
    # Who asks is known from what the connection has proven, now or earlier: the reference's clients send no requester_id,
    # and a mere claim would open every private name to anyone who can guess a friend's id.
    claimed = tables.nodes.get(request.node("requester_id"))
    if claimed is not None and request.text("signature"):
        require_signature(tables, request, claimed, node_text("resolve_hostname", claimed.node_id))
    requester = proven_node(tables, request.peer)
    if node is None or not (node.public or (requester is not None and tables.related(requester, node.node_id))):
        raise Refused(f"hostname {quote(hostname)} not found")
    return {
        "node_id": node.node_id,
        "address": str(Address(BACKBONE, node.node_id)),
        "public": node.public,
        "hostname": hostname,
        "last_seen_unix": int(node.last_seen),
    }


HANDLERS: Final = {
    "set_hostname": _set_hostname,
    "set_visibility": _set_visibility,
    "set_tags": _set_tags,
    "resolve_hostname": _resolve_hostname,
}
