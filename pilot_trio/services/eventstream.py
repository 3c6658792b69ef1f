"""Event stream on port 1002: a broker without memory (`spec/services.md` §4).

The first frame of a connection subscribes to exactly its topic, or with `*` to everything; every later one is delivered,
unchanged, to the other connections that asked for its topic. Runs on any Trio listener whose streams have a `remote`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from pilot_trio.address import SocketAddress
from pilot_trio.errors import DecodeError
from pilot_trio.proto.limits import TokenBucket
from pilot_trio.services.reading import CHUNK
from pilot_trio.wire import eventstream as wire

log = logging.getLogger("pilot_trio.services.eventstream")

SUBSCRIBERS_PER_TOPIC: Final = 1000  # further ones are closed; protocol §4
SUBSCRIBERS_PER_NODE: Final = 100  # of them from one node, or it could have all the places of a topic
PUBLISH_RATE: Final = 100.0  # events per second and connection; protocol §4, excess is dropped
PUBLISH_BURST: Final = 200  # events; protocol §4
QUEUE_EVENTS: Final = 256  # events waiting for one subscriber: a publisher's whole burst; what exceeds it is lost
QUEUE_BYTES_MAX: Final = 1 << 20  # bytes waiting for one subscriber; one event larger than this still fits alone
PARTIAL_BYTES_MAX: Final = 128 << 20  # bytes of half-received events, all together; the one that exceeds it is closed
WRITE_TIMEOUT: Final = 5.0  # seconds for one event; a subscriber that takes none for so long is removed

Publish = Callable[[str, dict[str, Any]], None]


@attrs.define(eq=False)
class _Subscriber:
    topic: str
    remote: SocketAddress
    queue: trio.MemorySendChannel[bytes]
    queued_bytes: int = 0

    def offer(self, frame: bytes) -> None:
        """Queue a frame if there is room; a subscriber that is behind loses it, as it would with a full write buffer."""
        if self.queued_bytes and self.queued_bytes + len(frame) > QUEUE_BYTES_MAX:
            return
        try:
            self.queue.send_nowait(frame)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return
        self.queued_bytes += len(frame)


class EventStream:
    """The broker: who listens to what."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._by_topic: dict[str, dict[int, _Subscriber]] = {}  # topic -> {id(subscriber): subscriber}
        self._partial_bytes = 0  # held by all decoders

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends or misbehaves; close it. For `trio.serve_listeners`."""
        remote: SocketAddress = stream.remote  # type: ignore[attr-defined]
        decoder = wire.EventDecoder()
        async with stream:
            try:
                first = await self._next_event(stream, decoder)
                if first is not None:
                    await self._serve(stream, decoder, first.topic, remote)
            except (DecodeError, trio.BrokenResourceError) as exc:
                log.debug("eventstream connection ended", extra={"kv": {"remote": str(remote), "reason": repr(exc)}})
            finally:
                self._partial_bytes -= len(decoder)

    async def _serve(
        self, stream: trio.abc.Stream, decoder: wire.EventDecoder, topic: str, remote: SocketAddress
    ) -> None:
        peers = self._by_topic.setdefault(topic, {})
        of_node = sum(peer.remote.address.node == remote.address.node for peer in peers.values())
        if len(peers) >= SUBSCRIBERS_PER_TOPIC or of_node >= SUBSCRIBERS_PER_NODE:
            return
        send, receive = trio.open_memory_channel[bytes](QUEUE_EVENTS)
        subscriber = _Subscriber(topic, remote, send)
        peers[id(subscriber)] = subscriber
        self._publish("pubsub.subscribed", {"remote": str(remote), "topic": topic})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, stream, subscriber, receive, nursery.cancel_scope)
                await self._relay(stream, decoder, subscriber)
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError as group:
            log.debug(
                "eventstream connection broke",
                extra={"kv": {"remote": str(remote), "reason": repr(group.exceptions[0])}},
            )
        finally:
            del peers[id(subscriber)]
            if not peers:
                self._by_topic.pop(topic, None)
            self._publish("pubsub.unsubscribed", {"remote": str(remote), "topic": topic})

    async def _relay(self, stream: trio.abc.Stream, decoder: wire.EventDecoder, publisher: _Subscriber) -> None:
        bucket = TokenBucket(PUBLISH_RATE, PUBLISH_BURST)
        source = str(publisher.remote)
        told = False
        try:
            while (event := await self._next_event(stream, decoder)) is not None:
                if not bucket.take(trio.current_time()):
                    self._publish("pubsub.rate_limited", {"from": source, "topic": event.topic})
                    if not told:  # once for a connection: a line for each event would be as much of a flood
                        told = True
                        kv = {"remote": source, "topic": event.topic, "limit_per_sec": f"{PUBLISH_RATE:g}"}
                        log.warning("pubsub publish dropped: rate limit", extra={"kv": kv})
                elif event.topic == wire.RESERVED_TOPIC:
                    self._publish("pubsub.publish_denied", {"from": source, "topic": event.topic})
                else:
                    self._fan_out(event, publisher)
        except DecodeError as exc:
            log.debug("eventstream connection ended", extra={"kv": {"remote": source, "reason": str(exc)}})

    async def _next_event(self, stream: trio.abc.Stream, decoder: wire.EventDecoder) -> wire.TopicEvent | None:
        """Return the next event, or None at the end of the stream."""
        while True:
            held = len(decoder)
            try:
                event = decoder.next_event()
            finally:
                self._partial_bytes += len(decoder) - held
            if event is not None:
                return event
            data = await stream.receive_some(CHUNK)
            if not data:
                return None
            self._partial_bytes += len(data)
            decoder.feed(data)
            if self._partial_bytes > PARTIAL_BYTES_MAX:
                raise DecodeError(f"more than {PARTIAL_BYTES_MAX} bytes of unfinished events")

    def _fan_out(self, event: wire.TopicEvent, publisher: _Subscriber) -> None:
        frame = wire.encode(event.topic, event.payload)
        for topic in {event.topic, wire.ALL_TOPICS}:
            for subscriber in self._by_topic.get(topic, {}).values():
                if subscriber is not publisher:
                    subscriber.offer(frame)
        data = {"from": str(publisher.remote), "size": len(event.payload), "topic": event.topic}
        self._publish("pubsub.published", data)


async def _write(
    stream: trio.abc.Stream,
    subscriber: _Subscriber,
    receive: trio.MemoryReceiveChannel[bytes],
    scope: trio.CancelScope,
) -> None:
    said = {"remote": str(subscriber.remote)}
    async with receive:
        try:
            async for frame in receive:
                with trio.move_on_after(WRITE_TIMEOUT) as deadline:
                    await stream.send_all(frame)
                if deadline.cancelled_caught:
                    log.info("eventstream subscriber removed", extra={"kv": said | {"reason": "stalled"}})
                    scope.cancel()
                    return
                subscriber.queued_bytes -= len(frame)
        except trio.BrokenResourceError as exc:
            # It has closed. What it published before may still be on the way: reading goes on to the end.
            log.debug("eventstream subscriber left", extra={"kv": said | {"reason": repr(exc)}})
