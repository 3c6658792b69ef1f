"""One reliable stream as a pure state machine (`spec/transport.md` §3 to §9; RFC 9293 where that is silent).

In: `receive_packet`, the user's `write`, `read`, `close`, `abort`, and `handle_timeout`. Out: `packets_to_send`,
`next_event`, `next_deadline`. The shell calls `packets_to_send` after every input, then arms a timer for `next_deadline`.
Times are seconds of the shell's clock. Nothing here waits, logs, or knows of tunnels.

The protocol's peculiarities that shape this module: sequence numbers start at 0; the window counts segments of 1152
bytes; a segment once sent keeps its boundaries; there is no half-close; a FIN carries no acknowledgment; a reference peer
holds at most 128 early segments, never announces a reopened window, and never answers an empty acknowledgment.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import Final

from pilot_trio.address import SocketAddress
from pilot_trio.proto.sequence import seq_add, seq_leq, seq_lt
from pilot_trio.proto.stream.congestion import Congestion
from pilot_trio.proto.stream.reassembly import Reassembly
from pilot_trio.proto.stream.rtt import RTO_MAX, RttEstimator
from pilot_trio.proto.stream.send_queue import Segment, SendQueue
from pilot_trio.proto.stream.settings import (
    ACK_DELAY,
    FIN_HOLD,
    FIN_LINGER,
    FIN_RETRIES,
    HEADROOM,
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PROBES,
    NAGLE_DELAY,
    PROBE_ANSWER_GAP,
    PROBE_FIRST,
    PROBE_MAX,
    QUICK_ACKS,
    RECEIVE_SLOTS,
    REFERENCE_FLIGHT_MAX,
    REFERENCE_WINDOW_MAX,
    SEGMENT,
    SEND_BUFFER,
    TRANSMISSIONS_MAX,
    WINDOW_UPDATE_BELOW,
    StreamSettings,
)
from pilot_trio.wire import sack
from pilot_trio.wire.packet import ACK, FIN, RST, STREAM, SYN, Packet

TLP_MIN: Final = 0.01  # seconds; a tail is probed no sooner, so that delayed acknowledgments have a chance
TLP_ROUND_TRIPS: Final = 2.0  # round trips after which an unanswered tail is sent again (RFC 8985 §7.2)


class State(Enum):
    """States, spelled as users see them (`spec/transport.md` §3.1)."""

    SYN_SENT = "SYN_SENT"
    SYN_RECV = "SYN_RECV"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT = "FIN_WAIT"
    TIME_WAIT = "TIME_WAIT"
    CLOSED = "CLOSED"


class Event(Enum):
    """What the shell has to act upon."""

    OPENED = "opened"  # the dial succeeded
    REFUSED = "refused"  # the peer answered the dial with a reset
    READABLE = "readable"  # bytes arrived
    WRITABLE = "writable"  # the send buffer has room again
    END_OF_STREAM = "end of stream"  # nothing more will be readable beyond what is queued
    IDLE_TIMEOUT = "idle timeout"  # closed for lack of activity
    DEAD_PEER = "dead peer"  # closed because probes went unanswered
    ABANDONED = "abandoned"  # the peer stopped acknowledging
    CLOSED = "closed"  # the machine is done; forget it


class Connection:
    """One end of a stream. Make it with `dialling` or `accepting`."""

    def __init__(
        self, local: SocketAddress, remote: SocketAddress, state: State, settings: StreamSettings, now: float
    ) -> None:
        self.local = local
        self.remote = remote
        self.state = state
        self.settings = settings
        self.rtt = RttEstimator()
        self.congestion = Congestion(now)
        self.snd_una = 0
        self.snd_nxt = 1  # the SYN was 0: every connection starts there
        self.snd_wnd = 0  # segments
        self._window_max = 0  # the largest window that the peer has advertised; tells its kind
        self._queue = SendQueue()
        self._unsent = bytearray()
        self._unsent_at = 0  # start of what is not cut yet; moving it is cheaper than cutting the buffer
        self._pushed = 0  # bytes of it that Nagle's algorithm must not hold back
        self._write_blocked = False
        self._received = Reassembly(0)
        self._receive_open = True
        self._acks_owed = 0
        self._unacknowledged = 0  # segments received since the last acknowledgment
        self._quick_acks = QUICK_ACKS
        self._advertised = RECEIVE_SLOTS
        self._blocks: list[sack.Block] | None = None  # the peer's last report
        self._fin: Segment | None = None
        self._peer_fin: int | None = None  # sequence number of a FIN that overtook data
        self._probes = 0  # keepalive probes since anything was heard
        self._backoff = 1.0
        self._probe_interval = PROBE_FIRST
        self._tail_probed = False
        self._heard_at = self._active_at = now
        self._probe_answered_at = -inf
        self._outbox: deque[Packet] = deque()
        self._events: deque[Event] = deque()
        # Deadlines, one per named timer; `inf` is off. `next_deadline` is their minimum.
        self._retransmit_at = self._loss_at = self._pace_at = self._nagle_at = inf
        self._ack_at = self._probe_at = self._linger_at = self._fin_hold_at = self._expire_at = inf
        self._alive_at = inf
        self.segments_sent = self.segments_received = self.bytes_sent = self.bytes_received = 0
        self.retransmits = self.fast_retransmits = self.sacks_sent = self.sacks_received = self.duplicate_acks = 0

    @classmethod
    def dialling(
        cls, local: SocketAddress, remote: SocketAddress, now: float, settings: StreamSettings | None = None
    ) -> Connection:
        """Start a dial: the SYN is in `packets_to_send`; `send_syn` repeats it, when is the dialler's business."""
        connection = cls(local, remote, State.SYN_SENT, settings or StreamSettings(), now)
        connection.send_syn()
        return connection

    @classmethod
    def accepting(cls, syn: Packet, now: float, settings: StreamSettings | None = None) -> Connection:
        """Answer a SYN that was admitted. The connection is established as soon as the answer is sent."""
        local = SocketAddress(syn.destination, syn.destination_port)  # type: ignore[arg-type]
        remote = SocketAddress(syn.source, syn.source_port)  # type: ignore[arg-type]
        connection = cls(local, remote, State.ESTABLISHED, settings or StreamSettings(), now)
        connection._synchronise(syn)
        connection._send_syn_ack()
        connection._arm_alive(now)
        return connection

    # --- the user's side ---------------------------------------------------------------------------------------------

    @property
    def send_room(self) -> int:
        """Bytes that `write` would take now."""
        if self.state is not State.ESTABLISHED:
            return 0
        return max(0, SEND_BUFFER - (len(self._unsent) - self._unsent_at) - self._queue.in_flight)

    @property
    def readable(self) -> int:
        """Bytes that `read` would return now."""
        return self._received.queued_bytes

    @property
    def ended(self) -> bool:
        """True when nothing will become readable beyond what is."""
        return not self._receive_open

    @property
    def owes_acknowledgment(self) -> bool:
        """True while a packet is waiting to be asked for: reading may have opened the window again."""
        return self._acks_owed > 0

    @property
    def holds_peer_fin(self) -> bool:
        """True while the peer's FIN waits for data that it overtook."""
        return self._peer_fin is not None and self.state is State.ESTABLISHED

    def write(self, data: bytes | memoryview) -> int:
        """Take as much of `data` as there is room for; return how many bytes that were.

        After 0 an `Event.WRITABLE` announces room. 0 for ever on a stream that is not established.
        """
        taken = min(len(data), self.send_room)
        if taken < len(data):
            self._write_blocked = True
        if taken:
            self._unsent += data[:taken]
            if len(data) >= SEGMENT:
                self._pushed = len(self._unsent) - self._unsent_at
        return taken

    def read(self, max_bytes: int) -> bytes:
        """Take bytes that arrived; `b""` if there are none (see `ended`). Announces a reopened window if need be."""
        data = self._received.read(max_bytes)
        if data and self.state is State.ESTABLISHED and self._advertised < WINDOW_UPDATE_BELOW:
            window = self._received.window
            if window - self._advertised >= RECEIVE_SLOTS // 4 or not self._received.queued_bytes:
                self._acks_owed = max(1, self._acks_owed)
        return data

    def close(self, now: float) -> None:
        """Send what was written, then the FIN; what arrives from now on is discarded. Idempotent."""
        if self.state is State.SYN_SENT:
            self._finish(Event.CLOSED)
        elif self.state is State.ESTABLISHED:
            self.state = State.FIN_WAIT
            self._pushed = len(self._unsent) - self._unsent_at
            self._receive_open = False
            self._received.discard()
            self._ack_at = self._nagle_at = self._alive_at = self._fin_hold_at = inf
            self._linger_at = now + FIN_LINGER

    def abort(self) -> None:
        """Reset the connection at once."""
        if self.state not in {State.CLOSED, State.TIME_WAIT}:
            self._emit(RST, seq=0)
        self._finish(Event.CLOSED)

    # --- packets in --------------------------------------------------------------------------------------------------

    def receive_packet(self, packet: Packet, now: float) -> None:
        """Work in a packet of this connection, in the protocol's order of dispatch (§3.9)."""
        self.segments_received += 1
        flags = packet.flags
        if flags & SYN:
            self._on_syn(packet, now)
        elif flags & FIN:
            self._on_fin(packet, now)
        elif flags & RST:
            self._on_reset()
        elif flags & ACK and self.state is not State.SYN_SENT:
            self._on_ack_or_data(packet, now)

    def _on_syn(self, packet: Packet, now: float) -> None:
        if not packet.flags & ACK:
            if self.state in {State.SYN_RECV, State.ESTABLISHED}:
                self._send_syn_ack()  # ours was lost
        elif self.state is State.SYN_SENT:
            self._synchronise(packet)
            self.state = State.ESTABLISHED
            self._heard_at = self._active_at = now
            self._acks_owed = 1
            self._events.append(Event.OPENED)
            self._arm_alive(now)

    def _synchronise(self, packet: Packet) -> None:
        self._received = Reassembly(seq_add(packet.seq, 1))
        self.snd_una = 1
        self.snd_wnd = self._window_max = packet.window

    def _on_reset(self) -> None:
        if self.state is State.SYN_SENT:
            self._finish(Event.REFUSED)
        elif self.state is not State.CLOSED:
            self._end_receiving()
            self._finish(Event.CLOSED)

    def _on_fin(self, packet: Packet, now: float) -> None:
        if self.state is State.FIN_WAIT:
            self._accept_fin(packet.seq, now)
        elif self.state is State.ESTABLISHED:
            self._heard(now)
            if seq_lt(self._received.rcv_nxt, packet.seq):
                # It overtook data: wait for that, and say what is missing.
                if self._peer_fin is None:
                    self._peer_fin = packet.seq
                self._fin_hold_at = now + FIN_HOLD
                self._acks_owed += 1
            else:
                self._accept_fin(packet.seq, now)

    def _accept_fin(self, seq: int, now: float) -> None:
        self._queue = SendQueue()
        self._unsent.clear()
        self._unsent_at = self._pushed = 0
        self._emit(FIN | ACK, seq=self._next_after_fin(), ack=seq_add(seq, 1))
        self.state = State.TIME_WAIT
        self._stop_timers()
        self._expire_at = now + self.settings.time_wait
        self._end_receiving()
        self._wake_writer()

    def _on_ack_or_data(self, packet: Packet, now: float) -> None:
        # After a quiet time an empty acknowledgment is a probe, unless it is the answer to one of ours.
        quiet = 0.0 if self._probes else now - self._heard_at
        self._heard(now)
        blocks = sack.decode(packet.payload)
        advanced = self._on_ack(packet, blocks, now)
        if packet.payload and blocks is None:
            self._on_data(packet, now)
        elif not packet.payload and not advanced:
            self._maybe_answer_probe(quiet, now)

    def _on_ack(self, packet: Packet, blocks: list[sack.Block] | None, now: float) -> bool:
        """Work in acknowledgment and window; return True if either brought something new."""
        ack = packet.ack
        if seq_lt(self.snd_nxt, ack) or seq_lt(ack, self.snd_una):
            return False  # for data never sent, or older than what we know
        window_changed = packet.window != self.snd_wnd
        self._take_window(packet.window, now)
        if blocks is not None:
            self.sacks_received += len(blocks)
            self._blocks = blocks
        advanced = ack != self.snd_una
        acknowledged = self._queue.acknowledge(ack) if advanced else []
        if advanced:
            self.snd_una = ack
            self._sample_rtt(acknowledged, now)
            self._backoff = 1.0
            self._tail_probed = False
            if self.state is State.FIN_WAIT and self._linger_at < inf:
                self._linger_at = now + FIN_LINGER  # the peer takes what was written; the FIN can wait
        elif self._queue and not packet.payload and not window_changed:
            self.duplicate_acks += 1
        arrived = [segment for segment in acknowledged if not segment.sacked]
        arrived += self._queue.selectively_acknowledge(blocks or ())
        self._account(arrived, now)
        if arrived or self._queue.lost_count:
            self._detect_losses(now)
        self._arm_retransmission(now)
        self._wake_writer()
        return advanced or window_changed

    def _account(self, arrived: list[Segment], now: float) -> None:
        for segment in arrived:
            self._queue.note_arrival(segment, now)
            if segment.sample is not None:
                self.congestion.on_delivered(len(segment.payload), segment.sent_at, segment.sample, now)
        if arrived:
            self.congestion.on_ack(self._queue.in_flight, self.rtt.min_rtt, now)

    def _sample_rtt(self, acknowledged: list[Segment], now: float) -> None:
        # One sample per acknowledgment, none if it covers anything sent twice (Karn).
        if acknowledged and all(segment.transmissions == 1 for segment in acknowledged):
            self.rtt.on_sample(max(0.0, now - acknowledged[-1].sent_at), now)

    def _detect_losses(self, now: float) -> None:
        lost, self._loss_at = self._queue.detect_losses(self._blocks, self.rtt.min_rtt, now)
        for _ in lost:
            self.fast_retransmits += 1
            self.congestion.on_lost()

    def _take_window(self, window: int, now: float) -> None:
        self._window_max = max(self._window_max, window)
        if window and not self.snd_wnd:
            self._probe_interval = PROBE_FIRST
        self.snd_wnd = window
        # Every packet carries the window: a peer that still sends needs no probe yet.
        self._probe_at = inf if window else now + self._probe_interval

    def _on_data(self, packet: Packet, now: float) -> None:
        if self.state is not State.ESTABLISHED or not self._receive_open:
            return
        received = self._received
        in_order = packet.seq == received.rcv_nxt
        had_gap = received.has_gap
        if received.receive(packet.seq, packet.payload):
            self.bytes_received += len(packet.payload)
            self._events.append(Event.READABLE)
        if not in_order or had_gap or received.has_gap:
            self._acks_owed += 1  # a reference sender counts duplicates, so each gets its own
        else:
            self._unacknowledged += 1
            if self._unacknowledged >= 2:
                self._acks_owed = max(1, self._acks_owed)
            elif self._quick_acks:
                self._quick_acks -= 1
                self._acks_owed = max(1, self._acks_owed)
            elif self._ack_at == inf:
                self._ack_at = now + ACK_DELAY
        if self._peer_fin is not None:
            if seq_leq(self._peer_fin, received.rcv_nxt):
                self._accept_fin(self._peer_fin, now)
            else:
                self._fin_hold_at = now + FIN_HOLD

    def _maybe_answer_probe(self, quiet: float, now: float) -> None:
        """Answer an empty acknowledgment that brought nothing, in the two cases that cannot become a loop (§9.3, §3.5)."""
        if self.state is not State.ESTABLISHED:
            return
        window_grew = self._advertised == 0 or self._received.window > self._advertised
        keepalive = quiet >= PROBE_ANSWER_GAP and now - self._probe_answered_at >= PROBE_ANSWER_GAP
        if (window_grew and self._advertised < WINDOW_UPDATE_BELOW) or keepalive:
            self._probe_answered_at = now
            self._acks_owed = max(1, self._acks_owed)

    def _heard(self, now: float) -> None:
        self._heard_at = self._active_at = now
        self._probes = 0

    # --- packets out -------------------------------------------------------------------------------------------------

    def packets_to_send(self, now: float) -> list[Packet]:
        """Return what is to be sent now, in order; everything is handed out once."""
        out: list[Packet] = []
        self._pace_at = inf
        if self.state in {State.ESTABLISHED, State.FIN_WAIT}:
            self._send_data(out, now)
            if self.state is State.FIN_WAIT and self._fin is None and not self._queue and not self._unsent_bytes:
                self._send_fin(now)
        if out:
            self._acks_owed = max(0, self._acks_owed - 1)  # data carries an acknowledgment
        if self._acks_owed and self.state in {State.ESTABLISHED, State.FIN_WAIT}:
            out += self._acknowledgments()
        while self._outbox:
            out.append(self._outbox.popleft())
        self.segments_sent += len(out)
        return out

    def send_syn(self) -> None:
        """Queue the SYN, for the first time or again."""
        self._emit(SYN, seq=0, window=self._window_field())

    def _send_syn_ack(self) -> None:
        self._emit(SYN | ACK, seq=0, ack=self._received.rcv_nxt, window=self._window_field())

    @property
    def _unsent_bytes(self) -> int:
        return len(self._unsent) - self._unsent_at

    def _send_data(self, out: list[Packet], now: float) -> None:
        sent_new = False
        while (segment := self._next_segment(now)) is not None:
            sent_new = sent_new or not segment.transmissions
            self._transmit(segment, out, now)
        if sent_new:
            self._active_at = now
        if sent_new or (out and self._retransmit_at == inf):
            self._arm_retransmission(now)
        if not self.snd_wnd and self._probe_at == inf and (self._unsent_bytes or self._queue):
            self._probe_at = now + self._probe_interval

    def _next_segment(self, now: float) -> Segment | None:
        """Return what may leave now: a lost segment first, else the next new one."""
        lost = self._queue.next_lost()
        if lost is not None:
            if self._queue.in_flight >= self.congestion.cwnd:
                return None
        elif not self._may_send_new():
            return None
        at = self.congestion.may_send_at(now)
        if at > now:
            self._pace_at = at
            return None
        return lost or self._cut_segment(now)

    def _may_send_new(self) -> bool:
        if not self._unsent_bytes or self._queue.in_flight >= self.congestion.cwnd or not self.snd_wnd:
            return False
        limit = max(1, self.snd_wnd - HEADROOM)
        if self._window_max <= REFERENCE_WINDOW_MAX:
            limit = min(limit, REFERENCE_FLIGHT_MAX)
        return len(self._queue) < limit

    def _cut_segment(self, now: float, *, force: bool = False) -> Segment | None:
        """Cut the next segment off what was written, unless it is short and better waits for more (Nagle)."""
        size = min(SEGMENT, self._unsent_bytes)
        short = size < SEGMENT
        if (
            short
            and not force
            and size > self._pushed
            and self.state is State.ESTABLISHED
            and self._queue.holds_short()
        ):
            if self._nagle_at == inf:
                self._nagle_at = now + NAGLE_DELAY
            if self._nagle_at > now:
                return None
        self._nagle_at = inf
        payload = bytes(memoryview(self._unsent)[self._unsent_at : self._unsent_at + size])
        if sack.looks_like_sack(payload):
            payload, short = payload[:1], False  # a peer would swallow it (§4.5); "S" alone is safe, and so is the rest
        self._unsent_at += len(payload)
        self._pushed = max(0, self._pushed - len(payload))
        if self._unsent_at == len(self._unsent) or self._unsent_at >= 64 * SEGMENT:
            del self._unsent[: self._unsent_at]
            self._unsent_at = 0
        segment = Segment(self.snd_nxt, payload, short=short)
        self.snd_nxt = segment.end
        self.bytes_sent += len(payload)
        return segment

    def _transmit(self, segment: Segment, out: list[Packet], now: float) -> None:
        queue = self._queue
        app_limited = not self._unsent_bytes and not queue.lost_count
        sample = self.congestion.on_sent(len(segment.payload), queue.in_flight, now, app_limited=app_limited)
        queue.sent(segment, sample, now)
        out.append(self._packet(ACK, segment.seq, self._received.rcv_nxt, self._window_field(), segment.payload))
        self._note_acknowledged()

    def _acknowledgments(self) -> list[Packet]:
        blocks = self._received.sack_blocks()
        payload = sack.encode(blocks) if blocks else b""
        # A reference sender needs one per early segment to count three; our own kind judges by time.
        count = self._acks_owed if blocks and self._window_max <= REFERENCE_WINDOW_MAX else 1
        self.sacks_sent += len(blocks) * count
        packet = self._packet(ACK, self.snd_nxt, self._received.rcv_nxt, self._window_field(), payload)
        self._note_acknowledged()
        self._acks_owed = 0
        return [packet] * count

    def _note_acknowledged(self) -> None:
        self._unacknowledged = 0
        self._ack_at = inf

    def _window_field(self) -> int:
        self._advertised = self._received.window
        return self._advertised

    def _send_fin(self, now: float) -> None:
        self._fin = Segment(self.snd_nxt, b"", fin=True)
        self.snd_nxt = self._fin.end
        self._fin.transmissions = 1
        self._emit(FIN, seq=self._fin.seq)
        self._linger_at = inf
        self._retransmit_at = now + self.rtt.rto
        self._expire_at = now + self.settings.time_wait

    def _next_after_fin(self) -> int:
        return self.snd_nxt

    def _emit(self, flags: int, *, seq: int, ack: int = 0, window: int = 0) -> None:
        self._outbox.append(self._packet(flags, seq, ack, window, b""))

    def _packet(self, flags: int, seq: int, ack: int, window: int, payload: bytes) -> Packet:
        local, remote = self.local, self.remote
        return Packet(flags, STREAM, local.address, remote.address, local.port, remote.port, seq, ack, window, payload)

    # --- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is next needed; `math.inf` if never."""
        return min(
            self._retransmit_at, self._loss_at, self._pace_at, self._nagle_at, self._ack_at, self._probe_at,
            self._linger_at, self._fin_hold_at, self._expire_at, self._alive_at,
        )  # fmt: skip

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        if self._ack_at <= now:
            self._ack_at = inf
            self._quick_acks = QUICK_ACKS  # the stream paused; whoever talks next wants answers quickly
            self._acks_owed = max(1, self._acks_owed)
        if self._loss_at <= now:
            self._detect_losses(now)
        if self._probe_at <= now:
            self._probe_window(now)
        if self._retransmit_at <= now:
            self._on_retransmission_timeout(now)
        if self._linger_at <= now:
            self._queue = SendQueue()
            self._unsent.clear()
            self._unsent_at = self._pushed = 0
            self._send_fin(now)
        if self._fin_hold_at <= now and self._peer_fin is not None:
            self._accept_fin(self._peer_fin, now)
        if self._alive_at <= now:
            self._check_alive(now)
        if self._expire_at <= now:
            self._finish(Event.CLOSED)

    def _arm_retransmission(self, now: float) -> None:
        """Set the one timer that guards the flight: a tail probe first, then the retransmission timeout."""
        if self._fin is not None:
            return
        if not self._queue or not self.snd_wnd:
            self._retransmit_at = inf  # nothing out, or the window probe's business
        elif not self._tail_probed and self.rtt.srtt and not self._queue.lost_count:
            self._retransmit_at = now + max(TLP_MIN, TLP_ROUND_TRIPS * self.rtt.srtt + ACK_DELAY)
        else:
            self._retransmit_at = now + min(RTO_MAX, self.rtt.rto * self._backoff)

    def _on_retransmission_timeout(self, now: float) -> None:
        self._retransmit_at = inf
        if self._fin is not None:
            self._repeat_fin(now)
            return
        tail = self._queue.tail
        if tail is None:
            return
        if not self._tail_probed and self.rtt.srtt and not self._queue.lost_count:
            # Tail loss probe (RFC 8985 §7): the answer tells what else is missing.
            self._tail_probed = True
            if not tail.sacked:
                self._queue.mark_lost(tail)
        else:
            head = self._queue.head
            if head is not None and head.transmissions >= TRANSMISSIONS_MAX:
                self._abandon()
                return
            self.retransmits += 1
            self._queue.mark_all_lost()
            self.congestion.on_timeout()
            self._backoff = min(self._backoff * 2, RTO_MAX / self.rtt.rto)
        self._retransmit_at = now + min(RTO_MAX, self.rtt.rto * self._backoff)

    def _repeat_fin(self, now: float) -> None:
        fin = self._fin
        assert fin is not None
        if fin.transmissions > FIN_RETRIES:
            return  # the peer has gone, or has answered and forgotten
        fin.transmissions += 1
        self._emit(FIN, seq=fin.seq)
        self._backoff = min(self._backoff * 2, RTO_MAX / self.rtt.rto)
        self._retransmit_at = now + self.rtt.rto * self._backoff

    def _probe_window(self, now: float) -> None:
        """Send a real segment into a closed window: the only thing that makes a reference peer tell its window."""
        self._probe_at = inf
        if self.snd_wnd or self.state not in {State.ESTABLISHED, State.FIN_WAIT}:
            return
        segment = self._queue.head
        if segment is None and self._unsent_bytes:
            segment = self._cut_segment(now, force=True)
        if segment is None:
            return
        if now - self._heard_at > self.settings.idle_timeout:
            self._abandon()
            return
        transmissions = segment.transmissions
        out: list[Packet] = []
        if transmissions and not segment.lost:
            self._queue.mark_lost(segment)
        self._transmit(segment, out, now)
        segment.transmissions = max(1, transmissions)  # probes do not count towards giving up
        self._outbox.extend(out)
        self._probe_interval = min(PROBE_MAX, self._probe_interval * 2)
        self._probe_at = now + self._probe_interval

    def _arm_alive(self, now: float) -> None:
        self._alive_at = now + min(self.settings.keepalive, self.settings.idle_timeout)

    def _check_alive(self, now: float) -> None:
        # Compared as sums, as the deadlines are made: a difference may round the other way and never come due.
        if self.state is not State.ESTABLISHED:
            self._alive_at = inf
        elif now >= self._active_at + self.settings.idle_timeout:
            self._close_for(Event.IDLE_TIMEOUT, now)
        elif now >= self._active_at + self.settings.keepalive:
            if self._probes >= KEEPALIVE_PROBES:
                self._close_for(Event.DEAD_PEER, now)
                return
            self._probes += 1
            self._acks_owed = max(1, self._acks_owed)
            self._alive_at = now + KEEPALIVE_INTERVAL
        else:
            self._alive_at = self._active_at + min(self.settings.keepalive, self.settings.idle_timeout)

    # --- endings -----------------------------------------------------------------------------------------------------

    def _close_for(self, reason: Event, now: float) -> None:
        self._events.append(reason)
        self.close(now)
        self._end_receiving()

    def _abandon(self) -> None:
        self._events.append(Event.ABANDONED)
        self._emit(RST, seq=0)
        self._end_receiving()
        self._finish(Event.CLOSED)

    def _end_receiving(self) -> None:
        if self._receive_open or self.state is not State.CLOSED:
            self._receive_open = False
            self._events.append(Event.END_OF_STREAM)

    def _wake_writer(self) -> None:
        if self._write_blocked and (self.send_room >= SEND_BUFFER // 4 or self.state is not State.ESTABLISHED):
            self._write_blocked = False
            self._events.append(Event.WRITABLE)

    def _stop_timers(self) -> None:
        self._retransmit_at = self._loss_at = self._pace_at = self._nagle_at = inf
        self._ack_at = self._probe_at = self._linger_at = self._fin_hold_at = self._alive_at = inf

    def _finish(self, event: Event) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._stop_timers()
        self._expire_at = inf
        self._acks_owed = 0
        self._wake_writer()
        self._events.append(event)
        if event is not Event.CLOSED:
            self._events.append(Event.CLOSED)

    def next_event(self) -> Event | None:
        """Return the next thing that the shell has to act upon, or None."""
        return self._events.popleft() if self._events else None

    def row(self) -> dict[str, object]:
        """Return this connection as clients see it, without its id (`spec/ipc.md` §5.9)."""
        queue = self._queue
        fin_out = 1 if self._fin is not None and self.state is State.FIN_WAIT else 0
        return {
            "local_port": self.local.port,
            "remote_port": self.remote.port,
            "remote_addr": str(self.remote.address),
            "state": self.state.value,
            "bytes_sent": self.bytes_sent,
            "bytes_recv": self.bytes_received,
            "segs_sent": self.segments_sent,
            "segs_recv": self.segments_received,
            "retransmits": self.retransmits,
            "fast_retx": self.fast_retransmits,
            "sack_sent": self.sacks_sent,
            "sack_recv": self.sacks_received,
            "dup_acks": self.duplicate_acks,
            "cong_win": int(self.congestion.cwnd),
            "ssthresh": self.congestion.ssthresh,
            "in_flight": queue.in_flight + fin_out,
            "unacked": len(queue) + fin_out,
            "ooo_buf": self._received.early_count,
            "recv_win": self._received.window * 4096,
            "peer_recv_win": self.snd_wnd * SEGMENT,
            "in_recovery": bool(queue.lost_count),
            "srtt_ms": round(self.rtt.srtt * 1000, 3),
            "rttvar_ms": round(self.rtt.rttvar * 1000, 3),
        }
