from __future__ import annotations

import base64
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.daemon import hostname_cache
from pilot_trio.daemon.resolver import ENDPOINT_MAX, LAN_ENDPOINTS_MAX, Resolver, Route
from pilot_trio.daemon.timed_cache import FRESH, STALE
from pilot_trio.errors import NoRoute, RegistryError, RegistryUnavailable
from pilot_trio.net.endpoint import Endpoint
from tests.daemon.fakes import FakeClient, make_state, refused, unavailable


def found(node: int = 9, **fields: Any) -> dict[str, Any]:
    return {"type": "resolve_hostname_ok", "node_id": node, "address": "0:0000.0000.0009", **fields}


# Names


@pytest.mark.parametrize(("age", "asked"), [(FRESH - 1, 1), (FRESH, 2)])
async def test_name_is_remembered_for_a_minute(autojump_clock: MockClock, age: float, asked: int) -> None:
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    assert await resolver.resolve_hostname("nine") == found()
    await trio.sleep(age)
    assert await resolver.resolve_hostname("nine") == found()
    assert len(client.calls) == asked
    assert client.calls[0].timeout == 8


async def test_name_is_asked_for_in_the_own_name_once_there_is_one(autojump_clock: MockClock) -> None:
    state = make_state(0)
    client = FakeClient({"resolve_hostname": found()})
    await Resolver(client, state).resolve_hostname("nine")
    assert client.calls[0].fields == {"hostname": "nine"}
    state.node_id = NodeId(7)
    await Resolver(client, state).resolve_hostname("nine")
    signature = base64.b64decode(client.calls[1].fields.pop("signature"))
    assert verify(state.identity.public_key, signature, b"resolve_hostname:7")
    assert client.calls[1].fields == {"hostname": "nine", "requester_id": 7}


async def test_name_is_asked_for_with_the_key_and_the_id_that_the_node_has_now(autojump_clock: MockClock) -> None:
    state = make_state(7)
    client = FakeClient({"resolve_hostname": refused("no")})
    resolver = Resolver(client, state)

    async def ask() -> None:
        with pytest.raises(RegistryError):
            await resolver.resolve_hostname("nine")
        signature = base64.b64decode(client.calls[-1].fields["signature"])
        assert verify(state.identity.public_key, signature, b"resolve_hostname:%d" % state.node_id)

    await ask()
    await ask()
    state.node_id = NodeId(8)
    await ask()
    state.identity = Identity.generate()
    await ask()


async def test_own_name_is_never_remembered(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve_hostname": found(7)})
    resolver = Resolver(client, make_state(7))
    await resolver.resolve_hostname("me")
    await resolver.resolve_hostname("me")
    assert len(client.calls) == 2


async def test_forgotten_name_is_asked_for_again(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    await resolver.resolve_hostname("nine")
    resolver.forget_hostname("nine")
    await resolver.resolve_hostname("nine")
    assert len(client.calls) == 2


async def test_name_is_asked_for_no_longer_than_whoever_asks_will_wait(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    await resolver.resolve_hostname("nine", by=trio.current_time() + 100)
    await resolver.resolve_hostname("ten", by=trio.current_time() + 0.5)
    await resolver.resolve_hostname("eleven", by=trio.current_time() - 1)
    assert [call.timeout for call in client.calls] == [8, 0.5, 0]


@pytest.mark.parametrize(("age", "served"), [(FRESH + 1, True), (STALE - 1, True), (STALE, False)])
async def test_known_name_outlives_an_outage_of_the_registry(
    autojump_clock: MockClock, age: float, served: bool
) -> None:
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    await resolver.resolve_hostname("nine")
    await trio.sleep(age)
    client.answers["resolve_hostname"] = unavailable("call timed out, connection likely half-open")
    if served:
        assert await resolver.resolve_hostname("nine") == found()
    else:
        with pytest.raises(RegistryUnavailable, match="registry: call timed out, connection likely half-open"):
            await resolver.resolve_hostname("nine")


async def test_refusal_of_a_name_is_passed_on_and_ends_what_was_known(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    await resolver.resolve_hostname("nine")
    await trio.sleep(FRESH)
    client.answers["resolve_hostname"] = refused('hostname "nine" not found')
    with pytest.raises(RegistryError, match='registry: hostname "nine" not found'):
        await resolver.resolve_hostname("nine")
    client.answers["resolve_hostname"] = unavailable()
    with pytest.raises(RegistryUnavailable):
        await resolver.resolve_hostname("nine")


async def test_number_of_remembered_names_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostname_cache, "NAMES_MAX", 2)
    client = FakeClient({"resolve_hostname": found()})
    resolver = Resolver(client, make_state())
    for name in ("a", "b", "c", "b", "c", "a"):
        await resolver.resolve_hostname(name)
    assert [call.fields["hostname"] for call in client.calls] == ["a", "b", "c", "a"]


# Routes


def resolved(**fields: Any) -> dict[str, Any]:
    return {"type": "resolve_ok", "node_id": 9, "real_addr": "192.0.2.9:4000", **fields}


async def test_route_is_asked_for_with_a_signature_and_remembered(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve": resolved(lan_addrs=["10.0.0.9:4000", "junk", 5], relay_only=True)})
    state = make_state(7)
    resolver = Resolver(client, state)
    route = Route(Endpoint("192.0.2.9", 4000), (Endpoint("10.0.0.9", 4000),), relay_only=True)
    assert await resolver.resolve(9) == route
    assert await resolver.resolve(9) == route
    (call,) = client.calls
    assert (call.fields["node_id"], call.fields["requester_id"], call.timeout) == (9, 7, 8)
    signature = base64.b64decode(call.fields["signature"])
    assert verify(state.identity.public_key, signature, b"resolve:7:9")
    resolver.forget(9)
    await resolver.resolve(9)
    assert len(client.calls) == 2


async def test_of_very_many_addresses_inside_the_first_are_kept(autojump_clock: MockClock) -> None:
    lan = [f"10.0.{number}.9:4000" for number in range(LAN_ENDPOINTS_MAX + 1)]
    route = await Resolver(FakeClient({"resolve": resolved(lan_addrs=lan)}), make_state()).resolve(9)
    assert list(map(str, route.lan_endpoints)) == lan[:LAN_ENDPOINTS_MAX]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (refused(), "resolve node 9: registry: request failed"),
        (unavailable("recv: EOF"), "resolve node 9: registry: recv: EOF"),
        (resolved(real_addr=""), "resolve node 9: node 9 has no real address"),
        ({"type": "resolve_ok"}, "resolve node 9: node 9 has no real address"),
        (resolved(real_addr="junk"), "resolve node 9: node 9 has an unusable address 'junk'"),
        (resolved(real_addr=5), "resolve node 9: node 9 has an unusable address 5"),
        (
            resolved(real_addr="x" * 1_000_000 + ":5"),
            f"resolve node 9: node 9 has an unusable address '{'x' * (ENDPOINT_MAX - 1)}",
        ),
    ],
)
async def test_missing_route_says_why(autojump_clock: MockClock, answer: Any, text: str) -> None:
    with pytest.raises(NoRoute) as caught:
        await Resolver(FakeClient({"resolve": answer}), make_state()).resolve(9)
    assert str(caught.value) == text


async def test_unregistered_node_cannot_ask_for_routes(autojump_clock: MockClock) -> None:
    client = FakeClient()
    with pytest.raises(NoRoute, match="resolve node 9: registry: this node is not registered yet"):
        await Resolver(client, make_state(0)).resolve(9)
    assert client.calls == []


@pytest.mark.parametrize(("age", "served"), [(STALE - 1, True), (STALE, False)])
async def test_known_route_outlives_an_outage(autojump_clock: MockClock, age: float, served: bool) -> None:
    client = FakeClient({"resolve": resolved()})
    resolver = Resolver(client, make_state())
    route = await resolver.resolve(9)
    client.answers["resolve"] = unavailable()
    await trio.sleep(age)
    if served:
        assert await resolver.resolve(9) == route
    else:
        with pytest.raises(NoRoute):
            await resolver.resolve(9)


async def test_sixteen_thousand_routes_are_remembered_and_the_oldest_makes_room() -> None:
    client = FakeClient({"resolve": resolved()})
    resolver = Resolver(client, make_state())
    for node in range(100, 100 + 16_384 + 1):
        await resolver.resolve(node)
    asked = len(client.calls)
    await resolver.resolve(101)
    assert len(client.calls) == asked
    await resolver.resolve(100)
    assert len(client.calls) == asked + 1


async def test_refused_route_is_not_papered_over(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve": resolved()})
    resolver = Resolver(client, make_state())
    await resolver.resolve(9)
    await trio.sleep(FRESH)
    client.answers["resolve"] = refused()
    with pytest.raises(NoRoute):
        await resolver.resolve(9)
    client.answers["resolve"] = unavailable()
    with pytest.raises(NoRoute):
        await resolver.resolve(9)


# Records


async def test_own_record_is_a_second_old_at_most_and_others_are_fresh(autojump_clock: MockClock) -> None:
    client = FakeClient({"lookup": {"type": "lookup_ok", "hostname": "x"}})
    resolver = Resolver(client, make_state(7))
    for node in (7, 7, 9, 9):
        assert (await resolver.lookup(node))["hostname"] == "x"
    assert [call.fields["node_id"] for call in client.calls] == [7, 9, 9]
    await trio.sleep(1)
    await resolver.lookup(7)
    resolver.forget(7)
    await resolver.lookup(7)
    assert len(client.calls) == 5


async def test_public_key_is_decoded_and_checked(autojump_clock: MockClock) -> None:
    key = bytes(range(32))
    client = FakeClient({"lookup": {"type": "lookup_ok", "public_key": base64.b64encode(key).decode()}})
    resolver = Resolver(client, make_state())
    assert await resolver.public_key(9) == key
    for wrong in (None, 5, "", "!!", "AAAA"):
        client.answers["lookup"] = {"type": "lookup_ok", "public_key": wrong}
        with pytest.raises(RegistryError, match="node 9 has"):
            await resolver.public_key(9)
    client.answers["lookup"] = {"type": "lookup_ok"}
    with pytest.raises(RegistryError, match="node 9 has no public key"):
        await resolver.public_key(9)


async def test_cancelled_questions_leave_no_trace(autojump_clock: MockClock) -> None:
    client = FakeClient({"resolve": resolved(), "resolve_hostname": found()}, delay=5)
    resolver = Resolver(client, make_state())
    with trio.move_on_after(1):
        await resolver.resolve(9)
    with trio.move_on_after(1):
        await resolver.resolve_hostname("nine")
    client.answers = {"resolve": unavailable(), "resolve_hostname": unavailable()}
    with pytest.raises(NoRoute):
        await resolver.resolve(9)
    with pytest.raises(RegistryUnavailable):
        await resolver.resolve_hostname("nine")
