"""The sending half: what leaves when, and what is done about silence (`spec/transport.md` §5, §9).

It knows positions, which are sequence numbers that do not wrap, and segments; not packets.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final

from pilot_trio.proto.stream.budget import STREAM_SHARE, Budget
from pilot_trio.proto.stream.congestion import Congestion
from pilot_trio.proto.stream.outgoing import NothingWritten, Outgoing
from pilot_trio.proto.stream.rtt import RTO_INITIAL, RTO_MAX
from pilot_trio.proto.stream.send_queue import NothingOut, Run, SendQueue
from pilot_trio.proto.stream.settings import (
    ABANDON_AFTER,
    ACK_DELAY,
    HEADROOM,
    HEADROOM_PROBE_FIRST,
    HEADROOM_PROBE_MAX,
    OUTSTANDING_MAX,
    PROBE_FIRST,
    PROBE_MAX,
    PROBE_MAX_OWN,
    REFERENCE_FLIGHT_MAX,
    REFERENCE_WINDOW_MAX,
    SEGMENT,
    SEND_BUFFER,
    SEND_BUFFER_MAX,
    TRANSMISSIONS_MAX,
)
from pilot_trio.wire.sack import BLOCKS_MAX, Block

SEVERAL: Final = 4  # segments that windows must have room for, to be large: a lost one is noticed by those after it
HANDSHAKE_RTT_MAX: Final = RTO_INITIAL / 3  # seconds; a first sample makes the timeout three times as long (RFC 6298)
TLP_MIN: Final = 0.01  # seconds; a tail is probed no sooner, so that delayed acknowledgments have a chance
TLP_ROUND_TRIPS: Final = 2.0  # round trips after which an unanswered tail is sent again (RFC 8985 §7.2)
_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 1 << 31
_NOTHING_WRITTEN: Final = NothingWritten()
_NOTHING_OUT: Final = NothingOut()
_UNUSED: Final = Congestion(0.0)  # of all streams that were not written to yet: all of those that only come and go


class Sender:
    """Deadlines are attributes, one per named timer; `inf` is off."""

    __slots__ = (
        "_backoff", "_blind_below", "_budget", "_counted_flight", "_counted_path", "_probe_interval", "_silent_since",
        "_since", "_size_probe", "_tail_probed", "_timeouts", "congestion", "duplicate_acks", "fast_retransmits", "fin_end",
        "loss_at", "outgoing", "pace_at", "peer_is_reference", "probe_at", "queue", "retransmit_at", "retransmits", "rtt",
        "snd_nxt", "snd_una", "snd_wnd",
    )  # fmt: skip

    def __init__(self, budget: Budget, now: float) -> None:
        self.rtt = budget.begin_stream(now)
        self.congestion = _UNUSED  # like the next two: `write` makes its own
        self.queue: SendQueue = _NOTHING_OUT
        self.outgoing: Outgoing = _NOTHING_WRITTEN
        self._since = now
        self.snd_una = self.snd_nxt = 1  # positions; the SYN was 0: every connection starts there
        self.fin_end = -inf  # position after a FIN that has left
        self.snd_wnd = 0  # segments
        self.peer_is_reference = True  # until it shows that it can reorder more than a reference node (§12)
        self.retransmit_at = self.loss_at = self.pace_at = self.probe_at = inf
        self.retransmits = self.fast_retransmits = self.duplicate_acks = 0
        self._blind_below = 0  # position below which the peer's last report says nothing
        self._backoff = 1.0
        self._timeouts = 0  # since anything was acknowledged
        self._silent_since = 0.0  # when the first of them was
        self._tail_probed = False
        self._probe_interval = 0.0  # of the closed window; 0 before the first probe
        self._size_probe: Run | None = None  # a segment larger than the path has proved to carry
        self._budget = budget
        self._counted_flight = self._counted_path = 0  # this stream's part of the budget's sums

    # --- the user's side ---------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that `write` would take now. What arrived behind a gap does not count, or each gap would stop the writer.

        Two windows: one is on its way, the other is there when the first has arrived, however long the path.
        """
        cwnd = self.congestion.cwnd
        buffer = SEND_BUFFER if cwnd <= SEND_BUFFER // 2 else min(SEND_BUFFER_MAX, 2 * cwnd)
        return max(0, buffer - self.outgoing.size - self.queue.in_flight)

    @property
    def is_idle(self) -> bool:
        """True when everything written is acknowledged."""
        return not self.queue.outstanding and not self.outgoing.size

    def position_of(self, seq: int) -> int:
        """Return the position nearest to what is acknowledged that a sequence number can mean."""
        return self.snd_una + ((seq - self.snd_una + _HALF) & _MASK) - _HALF

    def write(self, data: bytes | memoryview, *, push: bool) -> None:
        """Take bytes for which there is `room`; `push` if their tail must not wait for more."""
        if self.outgoing is _NOTHING_WRITTEN:
            self.congestion, self.queue, self.outgoing = Congestion(self._since), SendQueue(), Outgoing()
        self.outgoing.append(data, push=push)

    # --- what came back ----------------------------------------------------------------------------------------------

    def open_window(self, window: int) -> None:
        """Take the window of a handshake packet."""
        self.snd_wnd = window
        self.peer_is_reference = window <= REFERENCE_WINDOW_MAX

    def on_handshake(self, rtt: float, now: float) -> None:
        """Take the time from our half of the handshake to its answer for a first round trip.

        It may be too long, never too short: whoever answers a SYN may have had to ask the registry, the SYN may have waited
        for a key, what answers a SYN-ACK may have waited for data, and the first of either may have been lost. So one that
        would make us wait for longer than not knowing does not count.
        """
        if rtt < HANDSHAKE_RTT_MAX:
            self.rtt.on_bound(max(0.0, rtt), now)

    def on_ack(self, seq: int, window: int, blocks: list[Block] | None, now: float, *, bare: bool) -> bool:
        """Work in an acknowledgment; return True if it brought something new.

        Args:
          seq: the acknowledgment number.
          window: the window field.
          blocks: what it reports selectively; None if nothing.
          now: the current time.
          bare: there is no payload, so it may count as a duplicate.
        """
        ack = self.snd_una + ((seq - self.snd_una + _HALF) & _MASK) - _HALF
        if ack == self.fin_end:
            ack = self.snd_nxt  # everything, and the FIN
        if self.probe_at < inf:
            self.probe_at = now + self._probe_interval  # each packet tells a window: a peer that talks needs no probe
        if ack < self.snd_una or ack > self.snd_nxt:
            # Of data never sent, or overtaken by a newer one, whose window is newer too.
            return False
        window_changed = window != self.snd_wnd
        reopened = window_changed and not self.snd_wnd
        if window_changed:
            self._take_window(window, now)
        arrived: list[Run] = []
        advanced = ack > self.snd_una
        if advanced:
            arrived = self._advance(ack, now)
        elif bare and self.queue.outstanding and not window_changed:
            self.duplicate_acks += 1
        if blocks:
            arrived += self._take_report(blocks, now)
        if arrived or advanced:
            self._on_progress(arrived, now)
        elif reopened and (head := self.queue.first_segment()) is not None:
            self.queue.mark_lost(head)  # the probe found no room; now there is
            self._judge_size_probe(now)
        return advanced or window_changed

    def _advance(self, ack: int, now: float) -> list[Run]:
        self.snd_una = ack
        arrived, sent_once = self.queue.acknowledge(ack)
        if arrived and sent_once:
            # One sample per acknowledgment, none if it covers anything sent twice (Karn).
            self.rtt.on_sample(max(0.0, now - arrived[-1].sent_at), now)
        return arrived

    def _take_window(self, window: int, now: float) -> None:
        was_shut = not self.snd_wnd
        self.snd_wnd = window
        if window > REFERENCE_WINDOW_MAX:
            self.peer_is_reference = False
        self.probe_at = inf
        if window > HEADROOM or (window and was_shut):
            self._probe_interval = 0.0
        if was_shut or not window:
            self._arm_retransmission(now)

    def _take_report(self, blocks: list[Block], now: float) -> list[Run]:
        if not self.queue.outstanding:
            return []  # it can only name data never sent, or not missing any more
        spans = []
        for left, right in blocks:
            begin, end = self.position_of(left), self.position_of(right)
            if self.snd_una <= begin < end <= self.snd_nxt:  # else it names data never sent
                spans.append((begin, end))
        # A reference peer names its four highest ranges, whatever else it holds; our own kind names all that grew.
        blind = self.peer_is_reference and len(spans) == BLOCKS_MAX
        self._blind_below = min(span[0] for span in spans) if blind else 0
        marked = self.queue.selectively_acknowledge(spans)
        if marked and marked[-1].transmissions == 1:
            # While there are gaps, hardly a cumulative acknowledgment covers nothing that was sent twice.
            self.rtt.on_sample(max(0.0, now - marked[-1].sent_at), now)
        return marked

    def _on_progress(self, arrived: list[Run], now: float) -> None:
        # Only progress restarts the timers: a peer that sends data of its own repeats an old acknowledgment for ever.
        queue = self.queue
        self._backoff = 1.0
        self._timeouts = 0
        self._tail_probed = False
        if arrived:
            spurious = queue.note_arrivals(arrived, self.rtt.min_rtt, now)
            if spurious:
                self.congestion.on_lost(-spurious)
            self._budget.on_arrived(self._counted_flight - queue.in_flight)
            self.congestion.on_arrived(arrived, queue.in_flight, self.rtt, now)
            for run in arrived:
                if run.segment > SEGMENT:
                    self._budget.segment_size.on_large_arrived()
                    self._judge_size_probe(now)
                    break
            if queue.outstanding:
                self._detect_losses(now)
            else:
                self.loss_at = inf
        self._arm_retransmission(now)
        self._count()

    def _detect_losses(self, now: float) -> None:
        runs, self.loss_at = self.queue.detect_losses(self._blind_below, self.rtt.min_rtt, self.rtt.srtt, now)
        if not runs:
            return
        lost = sum(run.segments for run in runs)
        self.fast_retransmits += lost
        large = sum(run.segments for run in runs if run.segment > SEGMENT)
        if large:
            if self._judge_size_probe(now):
                lost, large = lost - 1, large - 1  # says nothing about queues
            self._budget.segment_size.on_large_lost(large, now)
        if lost:
            self.congestion.on_lost(lost)
            self._budget.on_lost(now)

    def _judge_size_probe(self, now: float) -> bool:
        """Look what became of the probe, if one is out; return True if it was lost."""
        probe = self._size_probe
        if probe is None or not (probe.arrived or probe.lost):
            return False
        self._size_probe = None
        if probe.arrived:
            self._budget.segment_size.on_probe_arrived(probe.size)
            return False
        self._budget.segment_size.on_probe_lost(probe.size, now)
        return True

    def _count(self) -> None:
        """Keep this stream's part of the sums over all streams to the peer."""
        budget, flight, path = self._budget, self.queue.in_flight, self.congestion.held_by_path
        budget.in_flight += flight - self._counted_flight
        budget.held_by_paths += path - self._counted_path
        self._counted_flight, self._counted_path = flight, path

    # --- what leaves -------------------------------------------------------------------------------------------------

    def runs_to_send(self, now: float) -> list[Run]:
        """Return what may leave now, in order: lost segments first, then new ones."""
        self.pace_at = inf
        out: list[Run] = []
        if self.snd_wnd:
            if self.queue.lost_count:
                self._resend_lost(out, now)
            if self.outgoing.size and not self.queue.lost_count:
                self._send_new(out, now)
        if out:
            self._count()
        if self.probe_at == inf and self._is_shut_out():
            self._wait_to_probe(now, self._probe_interval)
        return out

    def _allowance(self, segment: int, now: float) -> int:
        """Return how many segments of so many bytes congestion window, budget and pacing let out now."""
        flight = self.queue.in_flight
        limit = min(self.congestion.cwnd, max(STREAM_SHARE, self._counted_flight + self._budget.room))
        if flight >= limit:
            return 0
        segments = -((flight - limit) // segment)
        if self.congestion.pacing_rate == inf:
            return segments
        paced = self.congestion.allowance(now)
        if paced < segments * segment:
            segments = paced // segment
            if not segments:
                self.pace_at = self.congestion.allows_at(now, segment)
        return segments

    def _resend_lost(self, out: list[Run], now: float) -> None:
        queue, proved = self.queue, self._budget.segment_size.size
        while (run := queue.next_lost()) is not None:
            if run.segment > SEGMENT and (run.segment > proved or run.transmissions > 1):
                queue.cut_anew(run, proved if run.transmissions == 1 else SEGMENT)
            allowed = self._allowance(run.segment, now)
            if not allowed:
                break
            queue.keep_first(run, allowed)
            self._note_sent(run, now)
            out.append(run)
        if out and self.retransmit_at == inf:
            self._arm_retransmission(now)

    def _send_new(self, out: list[Run], now: float) -> None:
        outgoing, queue = self.outgoing, self.queue
        sent = False
        while outgoing.size:
            segment = SEGMENT if outgoing.size <= SEGMENT else self._segment(now)
            is_probe = segment > self._budget.segment_size.size
            segments = self._room(segment)
            if segments <= 0 or not (allowed := self._allowance(segment, now)):
                break
            segments = 1 if is_probe else min(segments, allowed)
            run = outgoing.cut(self.snd_nxt, segments, now, holds_short=queue.holds_short(), segment=segment)
            if run is None:
                break
            if is_probe and run.size == segment:
                self._size_probe = run
                self._budget.segment_size.on_probe_sent(segment)
            self.snd_nxt = run.end
            self._note_sent(run, now)
            out.append(run)
            sent = True
        if sent:
            self._arm_retransmission(now)

    def _segment(self, now: float) -> int:
        """Return how large the next segments are to be; one larger than what is proved is a probe."""
        if self.peer_is_reference:
            return SEGMENT
        sizes = self._budget.segment_size
        segment = (sizes.probe(self.outgoing.size, now) if self._size_probe is None else 0) or sizes.size
        if segment > SEGMENT and (self.congestion.cwnd < SEVERAL * segment or self._room(segment) < SEVERAL):
            return SEGMENT
        return segment

    def _room(self, segment: int) -> int:
        """Return for how many more segments of so many bytes the peer has room."""
        segments = self._flight_limit() - self.queue.outstanding
        if self.peer_is_reference:
            return segments
        return min(segments, (self.snd_wnd * SEGMENT - self.snd_nxt + self.snd_una) // segment)

    def _flight_limit(self) -> int:
        """Segments that may be outstanding: all that was promised, or less where the peer forgets to promise again (§9.3)."""
        if not self.peer_is_reference:
            return min(self.snd_wnd, OUTSTANDING_MAX)
        return min(self.snd_wnd - HEADROOM, REFERENCE_FLIGHT_MAX)

    def _note_sent(self, run: Run, now: float) -> None:
        self.congestion.on_sent(run)
        self.queue.sent(run, now)

    # --- the closed window -------------------------------------------------------------------------------------------

    def _is_shut_out(self) -> bool:
        """Say whether only a probe can find out that the peer has room."""
        if not self.snd_wnd:
            return not self.is_idle
        return self.outgoing.size > 0 and not self.queue.outstanding and self._flight_limit() <= 0

    def _wait_to_probe(self, now: float, interval: float) -> None:
        if self.snd_wnd:
            first, most = HEADROOM_PROBE_FIRST, HEADROOM_PROBE_MAX
        else:
            first, most = PROBE_FIRST, PROBE_MAX if self.peer_is_reference else PROBE_MAX_OWN
        self._probe_interval = max(first, min(most, interval))
        self.probe_at = now + self._probe_interval

    def probe_window(self, now: float) -> Run | None:
        """Return a real segment to send into a closed window: the only thing that makes a reference peer tell its window."""
        self.probe_at = inf
        if not self._is_shut_out():
            return None
        run = self.queue.first_segment()
        if run is None:
            run = self.outgoing.cut(self.snd_nxt, 1, now, holds_short=False)
            assert run is not None  # shut out with nothing outstanding means that something waits
            self.snd_nxt = run.end
        else:
            self.queue.mark_lost(run)
            if run.segment > SEGMENT:
                self._judge_size_probe(now)
                self.queue.cut_anew(run, SEGMENT)
                self.queue.keep_first(run, 1)
        transmissions = run.transmissions
        self._note_sent(run, now)
        # Probes do not count towards giving up; but the answer to a repeated one says nothing of the round trip (Karn).
        run.transmissions = max(2, transmissions) if transmissions else 1
        self._count()
        self._wait_to_probe(now, self._probe_interval * 2)
        self._arm_retransmission(now)
        return run

    # --- silence -----------------------------------------------------------------------------------------------------

    def _arm_retransmission(self, now: float) -> None:
        """Set the one timer that guards what is out: a tail probe first, then the retransmission timeout."""
        if not self.queue.outstanding or not self.snd_wnd:
            self.retransmit_at = inf  # nothing out, or the window probe's business
        elif self._probes_tail():
            self.retransmit_at = now + max(TLP_MIN, TLP_ROUND_TRIPS * self.rtt.srtt + ACK_DELAY)
        else:
            self.retransmit_at = now + min(RTO_MAX, self.rtt.rto * self._backoff)

    def _probes_tail(self) -> bool:
        return not self._tail_probed and self.rtt.srtt > 0 and not self.queue.lost_count

    def handle_timeout(self, now: float) -> bool:
        """Do what is due; return False if the peer is to be given up."""
        if self.loss_at <= now:
            self._detect_losses(now)
        if self.retransmit_at <= now:
            return self._on_retransmission_timeout(now)
        return True

    def repeat_now(self, now: float) -> None:
        """End a wait that has grown with every timeout; whatever the path swallowed before is no reason to give up now."""
        if self._backoff > 1.0 and self.retransmit_at < inf:
            self.retransmit_at = now
            self._timeouts = min(self._timeouts, TRANSMISSIONS_MAX - 2)

    def _on_retransmission_timeout(self, now: float) -> bool:
        self.retransmit_at = inf
        head = self.queue.head
        if head is None:
            return True
        if self._probes_tail():
            # Tail loss probe (RFC 8985 §7): the answer tells what else is missing.
            self._tail_probed = True
            tail = self.queue.last_segment()
            assert tail is not None  # there is a head
            self.queue.mark_lost(tail)
            self._judge_size_probe(now)
        else:
            if not self._timeouts:
                self._silent_since = now
            # Eight transmissions are over after half a minute on a short path. A machine that was merely asleep, or a
            # process that was stopped, comes back later than that.
            worn_out = self._timeouts >= TRANSMISSIONS_MAX - 1 and head.transmissions >= TRANSMISSIONS_MAX
            if worn_out and now - self._silent_since >= ABANDON_AFTER:
                return False
            self._timeouts += 1
            self.retransmits += 1
            self.queue.on_timeout()
            self.congestion.on_timeout()
            self._judge_size_probe(now)
            self._budget.segment_size.on_timeout(now)
            self._backoff = min(self._backoff * 2, RTO_MAX / self.rtt.rto)
        self.retransmit_at = now + min(RTO_MAX, self.rtt.rto * self._backoff)
        self._count()
        return True

    def row(self, *, fin_out: bool) -> dict[str, Any]:
        """Return this half's part of the connection list's row; `fin_out`: a FIN is out, which counts as a segment."""
        return {
            "retransmits": self.retransmits,
            "fast_retx": self.fast_retransmits,
            "dup_acks": self.duplicate_acks,
            "cong_win": int(self.congestion.cwnd),
            "ssthresh": self.congestion.ssthresh,
            "in_flight": self.queue.in_flight + fin_out,
            "unacked": self.queue.outstanding + fin_out,
            "peer_recv_win": self.snd_wnd * SEGMENT,
            "in_recovery": bool(self.queue.lost_count),
            "srtt_ms": round(self.rtt.srtt * 1000, 3),
            "rttvar_ms": round(self.rtt.rttvar * 1000, 3),
        }

    def stop(self) -> None:
        """Forget what is out and what was written, and give the budget back."""
        if self._size_probe is not None:
            self._size_probe = None
            self._budget.segment_size.on_probe_given_up()
        self.outgoing, self.queue = _NOTHING_WRITTEN, _NOTHING_OUT
        self._count()
        self._budget.held_by_paths -= self._counted_path
        self._counted_path = 0
        self.congestion.held_by_path = 0
        self.retransmit_at = self.loss_at = self.pace_at = self.probe_at = inf
