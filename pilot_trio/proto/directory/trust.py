"""Trust pairs, and the mailboxes that carry handshakes between nodes that cannot reach each other yet (§5).

A poll empties the boxes. If its connection breaks before the next poll of that node, the answer may be lost with it, so
what it carried waits again; `connection_closed` says so. Messages that a later poll has overtaken are gone for good.
"""

from __future__ import annotations

from typing import Final

from pilot_trio.address import NodeId
from pilot_trio.proto.directory.auth import live_node, require_signature
from pilot_trio.proto.directory.records import Mail
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message, handshake_text, node_text, pair_text, respond_text

JUSTIFICATION_MAX: Final = 1024  # bytes; spec registry §2.6
INBOX_MAX: Final = 100  # handshake requests waiting per node; spec registry §2.6
RESPONSES_MAX: Final = 100  # answers waiting per node; as many as requests
UNASKED_RESPONSES_MAX: Final = 50  # answers waiting per node; beyond, a rejection that nobody asked for is dropped
PENDING_MAX: Final = 1024  # requests remembered per asked node until approved; the oldest make room


def _report_trust(tables: Tables, request: Request) -> Message:
    node, peer_id = live_node(tables, request.node()), request.node("peer_id")
    require_signature(tables, request, node, pair_text("report_trust", node.node_id, peer_id))
    if peer_id == node.node_id:
        raise Refused("invalid peer_id: a node cannot trust itself")
    live_node(tables, peer_id)
    _make_pair(tables, node.node_id, peer_id)
    return {}


def _revoke_trust(tables: Tables, request: Request) -> Message:
    node, peer_id = live_node(tables, request.node()), request.node("peer_id")
    require_signature(tables, request, node, pair_text("revoke_trust", node.node_id, peer_id))
    if not tables.trusted(node.node_id, peer_id):
        raise Refused(f"no trust pair between {node.node_id} and {peer_id}")
    pair = _pair(node.node_id, peer_id)
    tables.trust.remove(pair)
    tables.changed("trust", *pair)
    for receiver, sender in (pair, pair[::-1]):
        _drop_mail(
            tables, "responses", receiver, sender
        )  # an approval of the time before must not answer a new request
    return {}


def _check_trust(tables: Tables, request: Request) -> Message:
    a, b = request.node(), request.node("peer_id")
    known = a in tables.nodes and b in tables.nodes and a != b
    return {"trusted": known and tables.related(a, b)}


def _request_handshake(tables: Tables, request: Request) -> Message:
    sender = live_node(tables, request.node("from_node_id"))
    target = live_node(tables, request.node("to_node_id"))
    justification = request.text("justification")
    if (size := len(justification.encode())) > JUSTIFICATION_MAX:
        raise Refused(f"justification too large: {size} bytes (max {JUSTIFICATION_MAX})")
    text = handshake_text(sender.node_id, target.node_id)
    require_signature(tables, request, sender, text, "handshake request")
    if sender is target:
        raise Refused("invalid to_node_id: a node cannot ask itself")
    box = tables.requests.get(target.node_id, {})
    waiting = [mail for mail in box.values() if mail.handed_to is None]
    present = box.get(sender.node_id)
    if present is not None and present.handed_to is None:
        raise Refused(f"handshake request already pending from node {sender.node_id}")
    if len(waiting) >= INBOX_MAX:
        raise Refused(f"handshake inbox full for node {target.node_id}")
    tables.requests.setdefault(target.node_id, {})[sender.node_id] = Mail(request.now, justification=justification)
    tables.changed("requests", target.node_id, sender.node_id)
    _remember_pending(tables, target.node_id, sender.node_id, request.now)
    tables.notify[target.node_id] = None
    return {"status": "delivered"}


def _remember_pending(tables: Tables, asked: NodeId, asking: NodeId, now: float) -> None:
    pending = tables.pending.setdefault(asked, {})
    pending.pop(asking, None)
    if len(pending) >= PENDING_MAX:
        oldest = next(iter(pending))
        del pending[oldest]
        tables.changed("pending", asked, oldest)
    pending[asking] = now
    tables.changed("pending", asked, asking)


def _respond_handshake(tables: Tables, request: Request) -> Message:
    node, peer_id = live_node(tables, request.node()), request.node("peer_id")
    text = respond_text(node.node_id, peer_id)
    require_signature(tables, request, node, text, "handshake response")
    accept = request.flag("accept")
    answer: Message = {"accept": accept, "peer_id": peer_id}
    pending = tables.pending.get(node.node_id, {})
    asked = peer_id in pending
    if accept:
        if asked:
            del pending[peer_id]
            tables.changed("pending", node.node_id, peer_id)
            _make_pair(tables, node.node_id, peer_id)
        elif not tables.trusted(node.node_id, peer_id):
            raise Refused(f"no pending handshake request from node {peer_id}")
        # Else the request came directly, and the trust was reported. The approval may be lost on the direct way: a
        # reference node takes the second one within 15 minutes for a replay.
    _drop_mail(tables, "requests", node.node_id, peer_id)
    _put_response(tables, peer_id, node.node_id, Mail(request.now, accept=accept), asked=asked)
    return answer


def _put_response(tables: Tables, receiver: NodeId, sender: NodeId, mail: Mail, *, asked: bool) -> None:
    if receiver not in tables.bindings:
        return  # a rejection of nobody; a box for every number would be a way to fill the memory
    _drop_mail(tables, "responses", receiver, sender)
    box = tables.responses.get(receiver, {})
    if not asked and len(box) >= UNASKED_RESPONSES_MAX:
        return
    if len(box) >= RESPONSES_MAX:
        _drop_mail(tables, "responses", receiver, next(iter(box)))
    tables.responses.setdefault(receiver, {})[sender] = mail
    tables.changed("responses", receiver, sender)
    tables.notify[receiver] = None


def _poll_handshakes(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    require_signature(tables, request, node, node_text("poll_handshakes", node.node_id))
    connection = request.peer.connection_id
    requests = _collect(tables, "requests", node.node_id, connection)
    responses = _collect(tables, "responses", node.node_id, connection)
    if requests or responses:
        tables.handed.setdefault(connection, set()).add(node.node_id)
    return {
        "requests": [
            {"from_node_id": sender, "justification": mail.justification, "timestamp": int(mail.timestamp)}
            for sender, mail in requests
        ],
        "responses": [
            {"from_node_id": sender, "accept": mail.accept, "timestamp": int(mail.timestamp)}
            for sender, mail in responses
        ],
    }


def _collect(tables: Tables, name: str, receiver: NodeId, connection: int) -> list[tuple[int, Mail]]:
    """Drop what the previous poll carried away, mark the rest as carried by `connection`, and return it."""
    collected: list[tuple[int, Mail]] = []
    for sender, mail in list(_boxes(tables, name).get(receiver, {}).items()):
        if mail.handed_to is not None:
            _drop_mail(tables, name, receiver, sender)
        else:
            mail.handed_to = connection
            collected.append((sender, mail))
    return collected


def connection_closed(tables: Tables, connection: int) -> None:
    """Let wait again what polls of this connection carried and no later poll has confirmed."""
    for node_id in tables.handed.pop(connection, ()):
        for name in ("requests", "responses"):
            for mail in _boxes(tables, name).get(node_id, {}).values():
                if mail.handed_to == connection:
                    mail.handed_to = None


def _boxes(tables: Tables, name: str) -> dict[int, dict[int, Mail]]:
    return tables.requests if name == "requests" else tables.responses


def _drop_mail(tables: Tables, name: str, receiver: int, sender: int) -> None:
    boxes = _boxes(tables, name)
    box = boxes.get(receiver)
    if box is not None and box.pop(sender, None) is not None:
        tables.changed(name, receiver, sender)
        if not box:
            del boxes[receiver]


def _make_pair(tables: Tables, a: NodeId, b: NodeId) -> None:
    if not tables.trusted(a, b):
        tables.trust.add(_pair(a, b))
        tables.changed("trust", *_pair(a, b))


def _pair(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


HANDLERS: Final = {
    "report_trust": _report_trust,
    "revoke_trust": _revoke_trust,
    "check_trust": _check_trust,
    "request_handshake": _request_handshake,
    "poll_handshakes": _poll_handshakes,
    "respond_handshake": _respond_handshake,
}
