"""Hostnames, tags, visibility, and who may find whom by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.directory import PeerInfo
from tests.proto.directory.world import TOKEN, World

PATTERN = "invalid hostname: hostname must be lowercase alphanumeric with hyphens, start/end with alphanumeric"


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes(3)
    return world


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 63, "x1-2-y"])
def test_valid_hostnames(world: World, name: str) -> None:
    assert world.ok("set_hostname", node_id=1, hostname=name) == {"node_id": 1, "hostname": name}
    assert world.ok("lookup", node_id=1)["hostname"] == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a" * 64, "invalid hostname: hostname too long (max 63 chars)"),
        ("-" * 64, "invalid hostname: hostname too long (max 63 chars)"),
        ("-a", PATTERN),
        ("a-", PATTERN),
        ("A", PATTERN),
        ("a.b", PATTERN),
        ("a\n", PATTERN),
        ("\u00e4", PATTERN),
        ("localhost", 'invalid hostname: hostname "localhost" is reserved'),
        ("backbone", 'invalid hostname: hostname "backbone" is reserved'),
        ("broadcast", 'invalid hostname: hostname "broadcast" is reserved'),
    ],
)
def test_invalid_hostnames(world: World, name: str, text: str) -> None:
    assert world.error("set_hostname", node_id=1, hostname=name) == text


def test_a_name_is_one_nodes_until_it_is_freed(world: World) -> None:
    world.ok("set_hostname", node_id=1, hostname="one")
    world.ok("set_hostname", node_id=1, hostname="one")
    assert world.error("set_hostname", node_id=2, hostname="one") == 'hostname "one" already in use by node 1'
    world.ok("set_hostname", node_id=1, hostname="uno")
    world.ok("set_hostname", node_id=2, hostname="one")
    assert world.ok("set_hostname", node_id=2, hostname="") == {"node_id": 2, "hostname": ""}
    world.ok("set_hostname", node_id=2, hostname="")
    world.ok("set_hostname", node_id=3, hostname="one")


@pytest.mark.parametrize("kind", ["set_hostname", "set_visibility", "set_tags"])
def test_only_the_node_or_the_administrator_may_change_it(world: World, kind: str) -> None:
    message = {"type": kind, "node_id": 1, "hostname": "one", "public": True, "tags": []}
    assert world.send(message)["error"] == "signature required for authenticated node"
    forged = message | {"signature": world.keys[2].sign_text(f"{kind}:1")}
    assert world.send(forged)["error"] == "signature verification failed"
    assert world.send(forged | {"admin_token": TOKEN})["type"] == f"{kind}_ok"


@pytest.mark.parametrize("value", [False, None, "true", 1])
def test_only_true_is_public(world: World, value: object) -> None:
    assert world.ok("set_visibility", node_id=1, public=True)["visibility"] == "public"
    assert world.ok("set_visibility", node_id=1, public=value)["visibility"] == "private"


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (["b", "a"], ["b", "a"]),
        (["#a", "a", "##b"[1:]], ["a", "b"]),
        ([], []),
        (None, []),
        (["t" * 32], ["t" * 32]),
        ([str(n) for n in range(10)], [str(n) for n in range(10)]),
    ],
)
def test_valid_tags(world: World, tags: object, kept: list[str]) -> None:
    world.ok("set_tags", node_id=1, tags=["old"])
    assert world.ok("set_tags", node_id=1, tags=tags) == {"node_id": 1, "tags": kept}
    assert world.ok("lookup", node_id=1).get("tags", []) == kept


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ([str(n) for n in range(11)], "too many tags (max 10)"),
        (["t" * 33], f'tag "{"t" * 33}" too long (max 32 chars)'),
        ([""], "request failed"),
        (["#"], "request failed"),
        (["A"], "request failed"),
        ("a", "invalid tags: must be a list of strings"),
        ([1], "invalid tags: must be a list of strings"),
    ],
)
def test_invalid_tags_are_refused_before_anything_is_verified(world: World, tags: object, text: str) -> None:
    assert world.send({"type": "set_tags", "node_id": 1, "tags": tags})["error"] == text


def test_public_names_are_for_everybody(world: World) -> None:
    world.ok("set_hostname", node_id=1, hostname="one")
    world.ok("set_visibility", node_id=1, public=True)
    answer = world.ok("resolve_hostname", hostname="one")
    assert (answer["node_id"], answer["address"], answer["public"]) == (1, "0:0000.0000.0001", True)


def test_private_names_open_to_friends_on_connections_that_prove_who_asks(world: World) -> None:
    world.ok("set_hostname", node_id=1, hostname="one")
    unknown = 'hostname "one" not found'
    peers = {node: PeerInfo("192.0.2.1", 1, 1000 + node) for node in (1, 2, 3)}
    for node, peer in peers.items():
        world.ok("heartbeat", peer, node_id=node)
    assert world.ok("resolve_hostname", peers[1], hostname="one")["node_id"] == 1
    assert world.error("resolve_hostname", peers[2], hostname="one") == unknown
    world.ok("report_trust", node_id=2, peer_id=1)
    assert world.ok("resolve_hostname", peers[2], hostname="one")["public"] is False
    assert world.error("resolve_hostname", peers[3], hostname="one") == unknown
    number = world.network("lab", 1)
    world.ok("join_network", node_id=3, network_id=number)
    assert world.ok("resolve_hostname", peers[3], hostname="one")["node_id"] == 1
    # A claim is no proof.
    assert world.error("resolve_hostname", hostname="one", requester_id=1) == unknown


def test_a_signed_question_tells_who_asks_on_any_connection(world: World) -> None:
    world.ok("set_hostname", node_id=1, hostname="one")
    signature = world.keys[1].sign_text("resolve_hostname:1")
    answer = world.ok("resolve_hostname", hostname="one", requester_id=1, signature=signature)
    assert answer["node_id"] == 1
    stranger = world.keys[2].sign_text("resolve_hostname:1")
    refusal = world.error("resolve_hostname", hostname="one", requester_id=1, signature=stranger)
    assert refusal == "signature verification failed"
    unknown = world.error("resolve_hostname", hostname="one", requester_id=99, signature=signature)
    assert unknown == 'hostname "one" not found'


def test_failed_signature_proves_nothing(world: World) -> None:
    world.ok("set_hostname", node_id=1, hostname="one")
    peer = PeerInfo("192.0.2.1", 1, 1)
    world.send({"type": "heartbeat", "node_id": 1, "signature": world.keys[2].sign_text("heartbeat:1")}, peer)
    assert peer.authenticated_node is None
    assert world.error("resolve_hostname", peer, hostname="one") == 'hostname "one" not found'


def test_asking_for_no_name(world: World) -> None:
    assert world.error("resolve_hostname") == "hostname required"
    assert world.error("resolve_hostname", hostname=7) == "hostname required"
    assert world.error("resolve_hostname", hostname='a"b\n') == 'hostname "a\\"b\\n" not found'


@given(st.text(max_size=70))
def test_a_name_is_taken_as_it_is_or_refused(name: str) -> None:
    world = World()
    world.nodes(1)
    world.ok("set_visibility", node_id=1, public=True)
    answer = world.ask("set_hostname", node_id=1, hostname=name)
    if answer["type"] == "set_hostname_ok" and name:
        assert world.ok("resolve_hostname", hostname=name)["node_id"] == 1
