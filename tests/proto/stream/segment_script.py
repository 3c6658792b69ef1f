"""Conversations with one stream machine: at this time this comes in, exactly that goes out, then nothing.

Packets are written as users of a packet dump would: `flags seq ack window`, then `+n` for n bytes of data or
`[left-right]` for each range of a selective acknowledgment.
"""

from __future__ import annotations

import attrs

from pilot_trio.proto.stream.budget import Budget
from pilot_trio.proto.stream.connection import Connection, Event, State
from pilot_trio.proto.stream.settings import REFERENCE_WINDOW_MAX, StreamSettings
from pilot_trio.wire import sack
from pilot_trio.wire.packet import ACK, FIN, RST, STREAM, SYN, Packet, decode

from .link import address

FLAGS = {"SYN": SYN, "FIN": FIN, "RST": RST, "ACK": ACK}
US, PEER = address(1, 49152), address(2, 7)


def written(packet: Packet) -> str:
    flags = "|".join(name for name, bit in FLAGS.items() if packet.flags & bit)
    text = f"{flags} {packet.seq} {packet.ack} {packet.window}"
    blocks = sack.decode(packet.payload)
    if blocks is not None:
        return text + "".join(f" [{left}-{right}]" for left, right in blocks)
    return text + (f" +{len(packet.payload)}" if packet.payload else "")


def packet_of(text: str, payload: bytes = b"") -> Packet:
    """Read what `written` writes; data is zeros unless given."""
    names, seq, ack, window, *rest = text.split()
    flags = sum(FLAGS[name] for name in names.split("|"))
    blocks = []
    for word in rest:
        if word.startswith("+"):
            payload = payload or bytes(int(word[1:]))
        else:
            left, right = word.strip("[]").split("-")
            blocks.append((int(left), int(right)))
    if blocks:
        payload = sack.encode(blocks)
    source, destination = PEER, US
    return Packet(
        flags, STREAM, source.address, destination.address, source.port, destination.port,
        int(seq), int(ack), int(window), payload,
    )  # fmt: skip


@attrs.define
class Script:
    machine: Connection
    now: float = 0.0
    events: list[Event] = attrs.Factory(list)
    _out: list[tuple[float, Packet]] = attrs.Factory(list)

    def pump(self) -> None:
        self._out += [(self.now, decode(packet)) for packet in self.machine.packets_to_send(self.now)]
        while (event := self.machine.next_event()) is not None:
            self.events.append(event)

    def gets(self, *packets: str, data: bytes = b"") -> None:
        """Let packets arrive in one batch."""
        for text in packets:
            self.machine.receive_packet(packet_of(text, data), self.now)
        self.pump()

    def writes(self, data: bytes | int) -> int:
        taken = self.machine.write(bytes(data))
        self.pump()
        return taken

    def reads(self) -> bytes:
        data = self.machine.read(1 << 30)
        self.pump()
        return data

    def closes(self) -> None:
        self.machine.close(self.now)
        self.pump()

    def sends(self, *expected: str) -> None:
        """Check that exactly this has left since the last check."""
        assert [written(packet) for _, packet in self._out] == list(expected)
        self._out.clear()

    def sends_nothing(self) -> None:
        self.sends()

    def until(self, time: float) -> None:
        """Let the time pass, timers included."""
        while (deadline := self.machine.next_deadline()) <= time:
            self.now = max(self.now, deadline)
            self.machine.handle_timeout(self.now)
            self.pump()
        self.now = time

    def sends_until(self, time: float, *expected: tuple[float, str]) -> None:
        """Check that up to a time exactly this leaves, each at its time."""
        assert not self._out, "sent already"
        self.until(time)
        assert [(round(at, 3), written(packet)) for at, packet in self._out] == list(expected)
        self._out.clear()

    def happened(self, *events: Event) -> None:
        assert self.events == list(events)
        self.events.clear()


def dialling(settings: StreamSettings | None = None) -> Script:
    script = Script(Connection.dialling(US, PEER, 0.0, settings))
    script.pump()
    script.sends("SYN 0 0 4096")
    return script


def established(window: int = 512, *, settings: StreamSettings | None = None, budget: Budget | None = None) -> Script:
    """A stream that was dialled; the peer advertises `window`, by default what a reference node does."""
    script = Script(Connection.dialling(US, PEER, 0.0, settings, budget))
    script.gets(f"SYN|ACK 0 1 {window}")
    if window <= REFERENCE_WINDOW_MAX:
        script.sends("SYN 0 0 4096", "ACK 1 1 4096")
    else:
        script.sends("SYN 0 0 4096")  # our own kind can wait for the rest
    script.happened(Event.OPENED)
    return script


def accepted(window: int = 512) -> Script:
    script = Script(Connection.accepting(packet_of(f"SYN 0 0 {window}"), 0.0))
    script.pump()
    script.sends("SYN|ACK 0 1 4096")
    return script


def closed_by_us() -> Script:
    """FIN_WAIT, with nothing outstanding."""
    script = established()
    script.closes()
    script.sends("FIN 1 0 0")
    assert script.machine.state is State.FIN_WAIT
    return script


def closed_by_peer() -> Script:
    """TIME_WAIT."""
    script = established()
    script.gets("FIN 1 0 0")
    script.sends("FIN|ACK 1 2 0")
    script.happened(Event.END_OF_STREAM)
    assert script.machine.state is State.TIME_WAIT
    return script
