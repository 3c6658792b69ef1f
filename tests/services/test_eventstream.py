from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.services import eventstream as service
from pilot_trio.services.eventstream import EventStream
from pilot_trio.services.reading import CHUNK
from pilot_trio.wire import eventstream as wire

from .streams import serving

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "services.json").read_text())["event_stream"]
Event = tuple[str, dict[str, Any]]


class Peer:
    """The other end of a connection to the broker."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = wire.EventDecoder()

    async def publish(self, topic: str, payload: bytes = b"") -> None:
        await self.stream.send_all(wire.encode(topic, payload))

    async def next(self) -> tuple[str, bytes] | None:
        while (event := self._decoder.next_event()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._decoder.feed(data)
        return event

    async def silent(self) -> bool:
        """Say whether nothing more arrives once everybody has done what there was to do."""
        arrived: list[tuple[str, bytes] | None] = []

        async def read() -> None:
            arrived.append(await self.next())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)  # not under a deadline of 0: that ends a read before it looks
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return not arrived


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def broker(events: list[Event]) -> EventStream:
    return EventStream(lambda topic, data: events.append((topic, data)))


@asynccontextmanager
async def subscribed(broker: EventStream, topic: str, port: int = 49152, node: int = 1) -> AsyncIterator[Peer]:
    async with serving(broker.handle, node=node, port=port) as stream:
        peer = Peer(stream)
        await peer.publish(topic)
        await trio.testing.wait_all_tasks_blocked()
        yield peer


async def test_recorded_frames_are_understood(broker: EventStream) -> None:
    frames = {frame["name"]: bytes.fromhex(frame["hex"]) for frame in VECTORS["frames"]}
    async with serving(broker.handle) as one, serving(broker.handle) as two, serving(broker.handle) as three:
        await one.send_all(frames["subscribe weather.tokyo"])
        await two.send_all(frames["subscribe *"])
        await three.send_all(wire.encode("other"))
        await trio.testing.wait_all_tasks_blocked()
        await three.send_all(frames["publish"])
        assert await Peer(one).next() == ("weather.tokyo", b"sunny 22C")
        assert await Peer(two).next() == ("weather.tokyo", b"sunny 22C")


async def test_a_publisher_does_not_get_its_own_events(broker: EventStream) -> None:
    async with subscribed(broker, "x") as publisher, subscribed(broker, "*") as everything:
        await publisher.publish("x", b"1")
        assert await everything.next() == ("x", b"1")
        assert await publisher.silent()


async def test_topics_match_exactly(broker: EventStream) -> None:
    async with subscribed(broker, "weather.*") as prefix, subscribed(broker, "") as empty, subscribed(broker, "p") as p:
        await p.publish("weather.tokyo", b"1")
        await p.publish("", b"2")
        assert await empty.next() == ("", b"2")
        assert await prefix.silent()


async def test_an_event_on_the_star_topic_reaches_star_subscribers_once(broker: EventStream) -> None:
    async with subscribed(broker, "*") as everything, subscribed(broker, "p") as publisher:
        await publisher.publish("*", b"1")
        assert await everything.next() == ("*", b"1")
        assert await everything.silent()


async def test_four_hundred_events_at_once_deliver_the_first_two_hundred(
    broker: EventStream,
    events: list[Event],
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with subscribed(broker, "rl") as subscriber, subscribed(broker, "p") as publisher:
        await publisher.stream.send_all(b"".join(wire.encode("rl", b"%d" % n) for n in range(400)))
        for n in range(200):
            assert await subscriber.next() == ("rl", b"%d" % n)
        assert await subscriber.silent()
        assert sum(topic == "pubsub.rate_limited" for topic, _ in events) == 200
        mock_clock.jump(0.01)  # one more token
        await publisher.publish("rl", b"again")
        await publisher.publish("rl", b"too much")
        assert await subscriber.next() == ("rl", b"again")
        assert await subscriber.silent()
    assert caplog.messages.count("pubsub publish dropped: rate limit") == 1  # not a line for each


async def test_what_a_publisher_sent_before_it_left_is_delivered_though_events_for_it_arrive(
    broker: EventStream,
) -> None:
    """A publisher subscribes to its topic by its first frame, so that events of others meet its closed connection."""
    big = bytes(20 * CHUNK)
    async with (
        subscribed(broker, "t") as subscriber,
        subscribed(broker, "p") as other,
        subscribed(broker, "t", port=49153) as leaving,
    ):
        await leaving.publish("t", big)
        await leaving.stream.aclose()
        await other.publish("t", b"meanwhile")
        with trio.fail_after(10):
            assert {await subscriber.next(), await subscriber.next()} == {("t", b"meanwhile"), ("t", big)}


async def test_the_reserved_topic_is_dropped_and_the_connection_stays(broker: EventStream, events: list[Event]) -> None:
    async with subscribed(broker, "*") as everything, subscribed(broker, "p") as publisher:
        await publisher.publish(wire.RESERVED_TOPIC, b"1")
        await publisher.publish("\0other", b"2")
        assert await everything.next() == ("\0other", b"2")
    assert ("pubsub.publish_denied", {"from": "0:0000.0000.0001:49152", "topic": wire.RESERVED_TOPIC}) in events


async def test_malformed_frames_close_the_connection_and_no_other(broker: EventStream) -> None:
    async with subscribed(broker, "*") as bystander:
        for garbage in (b"\x04\x01", b"\x00\x01t\x01\x00\x00\x01", b"\x00\x01\xff" + bytes(4)):
            for first in (b"", wire.encode("t")):
                async with serving(broker.handle) as stream:
                    await stream.send_all(first + garbage)
                    assert await stream.receive_some() == b""
        async with subscribed(broker, "p") as publisher:
            await publisher.publish("t", b"alive")
            assert await bystander.next() == ("t", b"alive")


async def test_comings_and_goings_are_events(broker: EventStream, events: list[Event]) -> None:
    async with subscribed(broker, "t"):
        pass
    remote = {"remote": "0:0000.0000.0001:49152", "topic": "t"}
    assert events == [("pubsub.subscribed", remote), ("pubsub.unsubscribed", remote)]
    assert broker._by_topic == {}


async def test_one_topic_takes_a_bounded_number_of_subscribers(
    broker: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SUBSCRIBERS_PER_TOPIC", 2)
    async with subscribed(broker, "t") as one, subscribed(broker, "t") as two, subscribed(broker, "t") as three:
        assert await three.next() is None
        assert await one.silent()
        assert await two.silent()


async def test_one_node_takes_a_bounded_number_of_a_topics_places(
    broker: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SUBSCRIBERS_PER_NODE", 1)
    async with subscribed(broker, "t") as one, subscribed(broker, "t") as two, subscribed(broker, "t", node=2) as three:
        assert await two.next() is None
        assert await one.silent()
        assert await three.silent()


class StalledStream(trio.abc.Stream):
    """A subscriber's stream whose reader never reads."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.remote = stream.remote

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_a_stalled_subscriber_holds_nobody_up_and_is_removed(
    broker: EventStream, mock_clock: trio.testing.MockClock
) -> None:
    async def handle_stalled(stream: trio.abc.Stream) -> None:
        await broker.handle(StalledStream(stream))

    async with serving(handle_stalled) as stalled, subscribed(broker, "t") as healthy, subscribed(broker, "p") as p:
        await stalled.send_all(wire.encode("t"))
        await trio.testing.wait_all_tasks_blocked()
        for n in range(100):
            await p.publish("t", bytes(50_000))
            assert await healthy.next() == ("t", bytes(50_000)), n
        mock_clock.jump(service.WRITE_TIMEOUT - 0.01)
        await trio.testing.wait_all_tasks_blocked()
        (subscriber,) = (s for s in broker._by_topic["t"].values() if s.queued_bytes)
        assert subscriber.queued_bytes <= service.QUEUE_BYTES_MAX
        mock_clock.jump(0.02)
        assert await stalled.receive_some() == b""
        assert len(broker._by_topic["t"]) == 1


async def test_unfinished_events_are_bounded_over_all_connections(
    broker: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PARTIAL_BYTES_MAX", 1000)
    half = wire.encode("t", bytes(5000))[:600]
    async with subscribed(broker, "a") as one, subscribed(broker, "b") as two:
        await one.stream.send_all(half)
        await trio.testing.wait_all_tasks_blocked()
        await two.stream.send_all(half)
        assert await two.next() is None
        assert await one.silent()
        assert broker._partial_bytes == 600
    await trio.testing.wait_all_tasks_blocked()
    assert broker._partial_bytes == 0
