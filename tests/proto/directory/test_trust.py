"""Trust pairs and mailboxes."""

from __future__ import annotations

import pytest

from pilot_trio.proto.directory import PeerInfo
from pilot_trio.proto.directory.trust import INBOX_MAX, PENDING_MAX, RESPONSES_MAX, UNASKED_RESPONSES_MAX
from tests.proto.directory.world import World


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes(3)
    return world


def poll(world: World, node: int, peer: PeerInfo | None = None) -> tuple[list[int], list[tuple[int, bool]]]:
    answer = world.ok("poll_handshakes", peer, node_id=node)
    requests = [request["from_node_id"] for request in answer["requests"]]
    return requests, [(response["from_node_id"], response["accept"]) for response in answer["responses"]]


def ask(world: World, asking: int, asked: int, justification: str = "please") -> None:
    world.ok("request_handshake", from_node_id=asking, to_node_id=asked, justification=justification)


def crowd(world: World, count: int) -> list[int]:
    """Make node ids that only the tables know: their signatures do not matter to what is tested."""
    return [world.register(number)["node_id"] for number in range(3, 3 + count)]


def test_pairs_are_unordered_and_reported_by_one_side(world: World) -> None:
    for _ in range(2):
        assert world.ok("report_trust", node_id=2, peer_id=1) == {}
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": True}
    assert world.ok("check_trust", node_id=2, peer_id=1) == {"trusted": True}
    assert world.ok("revoke_trust", node_id=1, peer_id=2) == {}
    assert world.error("revoke_trust", node_id=2, peer_id=1) == "request failed"
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": False}


def test_members_of_one_network_count_as_trusted(world: World) -> None:
    number = world.network("lab", 1)
    world.ok("join_network", node_id=2, network_id=number)
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": True}
    assert world.ok("check_trust", node_id=1, peer_id=3) == {"trusted": False}


def test_nobody_is_trusted_by_or_with_unknown_nodes(world: World) -> None:
    assert world.ok("check_trust", node_id=9, peer_id=9) == {"trusted": False}
    assert world.ok("check_trust") == {"trusted": False}
    assert world.error("report_trust", node_id=1, peer_id=9) == "node 9: node not found"
    assert world.error("report_trust", node_id=9, peer_id=1) == "node 9: node not found"


def test_a_node_cannot_trust_or_ask_itself(world: World) -> None:
    assert world.error("report_trust", node_id=1, peer_id=1).startswith("invalid peer_id")
    assert world.error("request_handshake", from_node_id=1, to_node_id=1).startswith("invalid to_node_id")
    assert world.directory.counts().trust_pairs == 0


def test_trust_survives_leaving_and_reaping(world: World) -> None:
    world.ok("report_trust", node_id=1, peer_id=2)
    world.ok("deregister", node_id=1)
    assert world.wait(1800) == [2, 3]
    world.register(0)
    world.register(1)
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": True}


def test_handshake_from_request_to_answer(world: World) -> None:
    ask(world, 1, 2, "hello")
    assert world.directory.take_notifications() == [2]
    assert world.ok("poll_handshakes", node_id=2)["requests"] == [
        {"from_node_id": 1, "justification": "hello", "timestamp": int(world.now)}
    ]
    assert poll(world, 2) == ([], [])
    assert world.ok("respond_handshake", node_id=2, peer_id=1, accept=True) == {"accept": True, "peer_id": 1}
    assert world.directory.take_notifications() == [1]
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": True}
    assert poll(world, 1) == ([], [(2, True)])
    assert poll(world, 1) == ([], [])


def test_rejection_needs_no_request_and_makes_no_pair(world: World) -> None:
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=False)
    assert poll(world, 1) == ([], [(2, False)])
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": False}


def test_approval_without_request_is_refused_unless_the_trust_was_reported(world: World) -> None:
    assert world.error("respond_handshake", node_id=2, peer_id=1, accept=True) == "request failed"
    assert poll(world, 1) == ([], [])
    world.ok("report_trust", node_id=2, peer_id=1)  # the request went past the registry, directly
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=True)
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=True)
    assert poll(world, 1) == ([], [(2, True)])


def test_an_approval_of_the_time_before_does_not_outlive_the_trust(world: World) -> None:
    ask(world, 1, 2)
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=True)
    world.ok("revoke_trust", node_id=1, peer_id=2)
    assert poll(world, 1) == ([], [])


def test_approval_after_a_restart_and_a_poll(world: World) -> None:
    ask(world, 1, 2)
    assert poll(world, 2) == ([1], [])
    world.restart()
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=True)
    assert poll(world, 1) == ([], [(2, True)])


def test_answered_requests_do_not_show_up_again(world: World) -> None:
    ask(world, 1, 2)
    world.ok("respond_handshake", node_id=2, peer_id=1, accept=False)
    assert poll(world, 2) == ([], [])


def test_one_request_per_sender_waits(world: World) -> None:
    ask(world, 1, 2)
    text = "handshake request already pending from node 1"
    assert world.error("request_handshake", from_node_id=1, to_node_id=2, justification="") == text
    poll(world, 2)
    ask(world, 1, 2)
    assert poll(world, 2) == ([1], [])


@pytest.mark.parametrize(
    ("kind", "fields", "what"),
    [
        ("request_handshake", {"from_node_id": 1, "to_node_id": 2}, "handshake request"),
        ("respond_handshake", {"node_id": 1, "peer_id": 2}, "handshake response"),
    ],
)
def test_signatures_of_handshakes_have_texts_of_their_own(
    world: World, kind: str, fields: dict[str, int], what: str
) -> None:
    assert world.send({"type": kind, **fields})["error"] == f"{what} requires signature"
    bad = world.keys[3].sign_text("handshake:1:2")
    assert world.send({"type": kind, **fields, "signature": bad})["error"] == f"{what} signature verification failed"
    assert world.send({"type": kind})["error"] == "node 0: node not found"


@pytest.mark.parametrize(("length", "fits"), [(1023, True), (1024, True), (1025, False)])
def test_justification_is_bounded_in_bytes(world: World, length: int, fits: bool) -> None:
    text = "\u00e9" * (length // 2) + "x" * (length % 2)
    answer = world.ask("request_handshake", from_node_id=1, to_node_id=2, justification=text)
    assert (answer["type"] == "request_handshake_ok") == fits


def test_inbox_holds_a_hundred_requests(world: World) -> None:
    senders = crowd(world, INBOX_MAX + 1)
    for sender in senders[:-1]:
        ask(world, sender, 1)
    overflow = {"from_node_id": senders[-1], "to_node_id": 1, "justification": ""}
    assert world.error("request_handshake", **overflow) == "request failed"
    assert poll(world, 1) == (senders[:-1], [])
    ask(world, senders[-1], 1)
    assert poll(world, 1) == (senders[-1:], [])


def test_unasked_rejections_cannot_crowd_out_answers(world: World) -> None:
    answering = crowd(world, RESPONSES_MAX + 2)
    for node in answering[:60]:
        world.ok("respond_handshake", node_id=node, peer_id=1, accept=False)
    asked = answering[60:]
    for node in asked:
        ask(world, 1, node)
        world.ok("respond_handshake", node_id=node, peer_id=1, accept=True)
    _, responses = poll(world, 1)
    assert [node for node, accept in responses if accept] == asked
    assert len([node for node, accept in responses if not accept]) == UNASKED_RESPONSES_MAX


def test_answers_are_bounded_and_the_oldest_makes_room(world: World) -> None:
    asked = crowd(world, RESPONSES_MAX + 1)
    for node in asked:
        ask(world, 1, node)
        world.ok("respond_handshake", node_id=node, peer_id=1, accept=True)
    assert poll(world, 1) == ([], [(node, True) for node in asked[1:]])


def test_rejecting_nobody_fills_no_memory(world: World) -> None:
    for node in range(100, 200):
        world.ok("respond_handshake", node_id=1, peer_id=node, accept=False)
    assert world.directory._tables.responses == {}


def test_pending_requests_are_bounded_and_the_oldest_makes_room(world: World) -> None:
    pending = world.directory._tables.pending.setdefault(2, {})
    pending.update(dict.fromkeys(range(1000, 1000 + PENDING_MAX), 0.0))
    ask(world, 1, 2)
    assert len(pending) == PENDING_MAX
    assert 1000 not in pending
    assert world.ok("respond_handshake", node_id=2, peer_id=1, accept=True)["accept"] is True


# --- a poll whose answer may have been lost ---


def test_what_a_broken_connection_carried_waits_again(world: World) -> None:
    ask(world, 1, 2)
    ask(world, 2, 3)
    world.ok("respond_handshake", node_id=3, peer_id=2, accept=True)
    first, second = PeerInfo("h", 1, 101), PeerInfo("h", 2, 102)
    assert poll(world, 2, first) == ([1], [(3, True)])
    world.directory.disconnected(first)
    assert poll(world, 2, second) == ([1], [(3, True)])
    assert poll(world, 2, first) == ([], [])  # the poll before was on a living connection: it has arrived
    world.directory.disconnected(second)
    assert poll(world, 2, first) == ([], [])


def test_what_a_poll_carried_survives_a_restart_until_the_next_poll(world: World) -> None:
    ask(world, 1, 2)
    assert poll(world, 2) == ([1], [])
    world.restart()
    assert poll(world, 2) == ([1], [])
    assert poll(world, 2) == ([], [])
    world.restart()
    assert poll(world, 2) == ([], [])


def test_connections_that_end_leave_nothing_behind(world: World) -> None:
    ask(world, 1, 2)
    peer = PeerInfo("h", 1, 7)
    poll(world, 2, peer)
    world.directory.disconnected(peer)
    world.directory.disconnected(peer)
    assert world.directory._tables.handed == {}
