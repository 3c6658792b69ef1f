"""What operators and subscribers read about tunnels: texts that people search for (`spec/tunnel.md` §6, §7, §10, §16)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.daemon.events import Event as BusEvent
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.tunnel_log import QUEUE_FULL_GAP, REPEATS, TunnelLog, redacted
from pilot_trio.proto.tunnel.events import (
    Drop,
    Established,
    Event,
    Forgotten,
    GaveUp,
    KeyNeeded,
    KeyUpdated,
    PathRecovered,
    PathSuspect,
    PeerAdded,
    Refused,
    RelayActivated,
    RelayCleared,
    Salvaged,
    SessionDropped,
)
from pilot_trio.proto.tunnel.machine import DIAL_FALLBACK

PEER = {"peer_node_id": 7}


def make(caplog: pytest.LogCaptureFixture) -> tuple[TunnelLog, list[BusEvent]]:
    caplog.set_level(logging.DEBUG, "pilot_trio.tunnel")
    bus = EventBus()
    seen: list[BusEvent] = []
    bus.subscribe(seen.append)
    return TunnelLog(bus, lambda node: False), seen


@pytest.mark.parametrize(
    ("event", "level", "text", "topic", "data"),
    [
        (
            SessionDropped(7, Drop.UNDECRYPTABLE),
            "WARNING",
            "tunnel: peer crypto key divergence detected, dropping session and re-handshaking",
            None,
            None,
        ),
        (
            SessionDropped(7, Drop.REPLAY),
            "WARNING",
            "tunnel: peer counter reset detected, dropping session and re-handshaking",
            None,
            None,
        ),
        (
            SessionDropped(7, Drop.OUTSIDE_WINDOW),
            "WARNING",
            "tunnel: peer replay-window diverged irrecoverably, dropping session and re-handshaking",
            None,
            None,
        ),
        (Refused(7, Drop.OUTSIDE_WINDOW), "WARNING", "tunnel packet outside replay window", None, None),
        (
            RelayActivated(7, "direct path silent"),
            "INFO",
            "direct path silent, flipping to relay",
            "tunnel.relay_activated",
            PEER,
        ),
        (
            RelayActivated(7, "silent direct attempts"),
            "INFO",
            "rekey relay fallback: flipping peer to relay after silent direct attempts",
            "tunnel.relay_activated",
            PEER,
        ),
        (
            RelayActivated(7, "direct path unreachable"),
            "INFO",
            "direct path ICMP-unreachable, flipping to relay",
            "tunnel.relay_activated",
            PEER,
        ),
        (
            RelayActivated(7, DIAL_FALLBACK),
            "INFO",
            "direct dial timed out, switching to relay",
            "tunnel.relay_activated",
            PEER,
        ),
        (RelayActivated(7, "relay only"), "DEBUG", "peer reached by relay", "tunnel.relay_activated", PEER),
        (RelayCleared(7), "INFO", "relay→direct auto-cleared on direct packet receipt", None, None),
        (GaveUp(7), "WARNING", "rekey retransmit gave up after maxRekeyAttempts", "tunnel.rekey_gave_up", PEER),
        (
            PathSuspect(7, "rekey_gave_up", 9.5, 0),
            "WARNING",
            "rekey gave up (session desync) — reset peer path",
            "tunnel.path_suspect",
            {**PEER, "reason": "rekey_gave_up"},
        ),
        (
            PathSuspect(7, "silent", 85.5, 3),
            "WARNING",
            "path watchdog: peer inbound-silent past probe budget — resetting path",
            "tunnel.path_suspect",
            {**PEER, "silent_for_seconds": 85, "probes_sent": 3},
        ),
        (PathRecovered(7), "INFO", "path watchdog: peer path recovered", "tunnel.path_recovered", PEER),
        (Salvaged(7, 4), "INFO", "desync salvage replayed", "tunnel.desync_salvage", {**PEER, "replayed": 4}),
        (KeyUpdated(7), "INFO", "auth key exchange: peer pubkey updated from registry", None, None),
        (Forgotten(7), "DEBUG", "reaping stale peer", None, None),
        (PeerAdded(7), None, None, "tunnel.peer_added", PEER),
        (KeyNeeded(7, fresh=True), None, None, None, None),
    ],
)
async def test_each_event_has_its_line_and_its_topic(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    event: Event,
    level: str | None,
    text: str | None,
    topic: str | None,
    data: dict[str, Any] | None,
) -> None:
    log, seen = make(caplog)
    log.report(event)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == ([] if text is None else [(level, text)])
    assert [tuple(published) for published in seen] == ([] if topic is None else [(topic, data)])


async def test_full_queue_of_a_peer_is_told_every_five_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = make(caplog)
    for _ in range(100):
        log.report(Refused(7, Drop.QUEUE_FULL))
        await trio.sleep(QUEUE_FULL_GAP / 10)
    log.report(Refused(8, Drop.QUEUE_FULL))
    assert [record.kv["peer_node_id"] for record in caplog.records] == [7] * 10 + [8]  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [REPEATS - 1, REPEATS, REPEATS + 1])
async def test_what_strangers_can_cause_is_told_a_few_times_per_peer_and_cause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    log, seen = make(caplog)
    for _ in range(number):
        log.report(Refused(7, Drop.REPLAY, detail=5))
    assert len(caplog.records) == len(seen) == min(number, REPEATS)
    log.report(Refused(7, Drop.SPOOFED_SOURCE, detail=9))
    log.report(Refused(8, Drop.REPLAY, detail=5))
    assert len(caplog.records) == min(number, REPEATS) + 2
    assert seen[-2].data == {"authenticated_peer_hash": redacted(7), "claimed_src_hash": redacted(9)}
    await trio.sleep(3600)
    log.report(Refused(7, Drop.REPLAY, detail=6))
    assert len(caplog.records) == min(number, REPEATS) + 3


async def test_what_a_peer_does_again_and_again_is_told_a_few_times(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log, seen = make(caplog)
    for _ in range(1000):  # a registered node may restart, or rotate its key, five times a second
        for event in (Established(7, None, False, rekeyed=True), Salvaged(7, 1), KeyUpdated(7)):
            log.report(event)
        await trio.sleep(0.2)
    assert len(caplog.records) == 3 * REPEATS
    assert len(seen) == 2000
    log.report(Established(7, None, False, rekeyed=False))
    assert caplog.records[-1].getMessage() == "encrypted tunnel established"


def test_redaction_tells_nodes_apart_and_nothing_else() -> None:
    assert redacted(7) == redacted(7) != redacted(8)
    assert redacted(7) != "7"
    assert len(redacted(1)) == len(redacted(0xFFFFFFFF))
