"""Topics of a node's event stream: `subscribe`, `publish`."""

from __future__ import annotations

import math
from typing import Any, Final

from pilot_trio.address import Address, quote
from pilot_trio.cli.commands.streams import payload_fields
from pilot_trio.cli.exchange import dial_service, hang_up
from pilot_trio.cli.framework import argument, command, count, duration, option, switch, timeout
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import ClientStream, DaemonGone, DaemonTimeout, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, daemon_errors
from pilot_trio.errors import DecodeError
from pilot_trio.wire import eventstream as wire
from pilot_trio.wire.service_ports import EVENT_STREAM_PORT

_SECTION: Final = "Events"
_TARGET: Final = "address|hostname"


@command("subscribe", section=_SECTION)
@argument("target", _TARGET)
@argument("topic")
@count("count", "stop after this many events; without it, never")
@duration("timeout", "stop when no event came for this time; without it, never")
@switch("no-auto-handshake", "do not check trust first")
def subscribe(
    session: Session, target: str, topic: str, count: int | None, timeout: float | None, no_auto_handshake: bool
) -> None:
    """Print the events of a topic (`*`: all) of a node."""
    _check_topic(topic)
    out = session.output
    idle = timeout if timeout is not None and timeout > 0 else math.inf
    rows: list[dict[str, Any]] = []
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        stream = dial_service(client, address, EVENT_STREAM_PORT).stream
        with daemon_errors("subscribe"):
            stream.send(wire.encode(topic), deadline_in(REQUEST_TIMEOUT))
        out.note(f"subscribed to {quote(topic)} on {address} — waiting for events...")
        feed = _Feed(stream)
        timed_out, failure = False, ""
        while count is None or count < 1 or len(rows) < count:
            try:
                event = feed.next(deadline_in(idle))
            except DaemonTimeout:
                timed_out = True
                break
            except (DaemonGone, DecodeError) as exc:
                failure = str(exc)
                break
            row = {"topic": event.topic, **payload_fields(event.payload)}
            _show(session, row, bare=count is None)
            if count is not None:
                rows.append(row)
        hang_up(stream)
    if timed_out:
        out.note("timeout")
    _finish(session, rows, timed_out, failure, bare=count is None)


@command("publish", section=_SECTION)
@argument("target", _TARGET)
@argument("topic")
@option("data", "what to publish")
@switch("no-auto-handshake", "do not check trust first")
@timeout("30s", "longest wait for the connection")
def publish(
    session: Session, target: str, topic: str, data: str | None, no_auto_handshake: bool, timeout: float
) -> None:
    """Publish an event to a topic of a node. Nobody tells who, if anybody, received it."""
    if not data:
        raise CliError("invalid_argument", "--data is required")
    _check_topic(topic)
    payload = data.encode("utf-8", "surrogateescape")
    if len(payload) > wire.PAYLOAD_MAX:
        raise CliError("invalid_argument", f"event is {len(payload)} bytes; at most {wire.PAYLOAD_MAX} fit")
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        _publish(dial_service(client, address, EVENT_STREAM_PORT, timeout=timeout).stream, topic, payload, timeout)
    session.output.result(_published(address, topic, payload))


class _Feed:
    """Events out of a stream."""

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream
        self._decoder = wire.EventDecoder()

    def next(self, deadline: float) -> wire.TopicEvent:
        """Return the next event; raise `DaemonTimeout`, `DaemonGone`, or `DecodeError` for what is no event."""
        while (event := self._decoder.next_event()) is None:
            data = self._stream.receive(deadline)
            if not data:
                raise DaemonGone("the node ended the subscription")
            self._decoder.feed(data)
        return event


def _publish(stream: ClientStream, topic: str, payload: bytes, timeout: float) -> None:
    """The first frame of a connection subscribes, the second one publishes (`spec/services.md` §4)."""
    with daemon_errors("publish"):
        stream.send(wire.encode(topic) + wire.encode(topic, payload), deadline_in(timeout))
    hang_up(stream)


def _published(address: Address, topic: str, payload: bytes) -> dict[str, Any]:
    return {"target": str(address), "topic": topic, "bytes": len(payload)}


def _check_topic(topic: str) -> None:
    size = len(topic.encode("utf-8", "surrogateescape"))
    if size > wire.TOPIC_MAX:
        raise CliError("invalid_argument", f"topic is {size} bytes; at most {wire.TOPIC_MAX} fit")
    if any("\ud800" <= character <= "\udfff" for character in topic):
        raise CliError("invalid_argument", "topic is not UTF-8")


def _show(session: Session, row: dict[str, Any], *, bare: bool) -> None:
    if session.output.as_json:
        if bare:
            session.output.event(row)
    else:
        session.output.line(f"[{row['topic']}] {row['data']}")


def _finish(session: Session, rows: list[dict[str, Any]], timed_out: bool, failure: str, *, bare: bool) -> None:
    if failure and (bare or not session.output.as_json):
        raise CliError("connection_failed", f"subscribe: {failure}")
    if not bare:
        result = {"events": rows, "timeout": timed_out} | ({"error": failure} if failure else {})
        session.output.result(result, lambda: None)


COMMANDS: Final = {c.name: c for c in (subscribe, publish)}
