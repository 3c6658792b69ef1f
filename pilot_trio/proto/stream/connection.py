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
from collections.abc import Sequence
from math import inf
from typing import Any, Final

from pilot_trio.address import Port, SocketAddress
from pilot_trio.proto.sequence import seq_add, seq_leq, seq_lt
from pilot_trio.proto.stream.budget import Budget
from pilot_trio.proto.stream.closing import Closing
from pilot_trio.proto.stream.liveness import Liveness, Verdict
from pilot_trio.proto.stream.outbox import Outbox
from pilot_trio.proto.stream.reassembly import Reassembly
from pilot_trio.proto.stream.receiver import Receiver, Spent
from pilot_trio.proto.stream.sender import Sender
from pilot_trio.proto.stream.settings import SEGMENT, SEND_BUFFER, WINDOW_UPDATE_BELOW, StreamSettings
from pilot_trio.proto.stream.states import Event as Event
from pilot_trio.proto.stream.states import State as State
from pilot_trio.wire import sack
from pilot_trio.wire.packet import ACK, FIN, RST, SYN, Packet

_MASK: Final = 0xFFFF_FFFF
_SPENT: Final = Spent()


class Connection:
    """One end of a stream. Make it with `dialling` or `accepting`."""

    def __init__(
        self,
        local: SocketAddress,
        remote: SocketAddress,
        state: State,
        settings: StreamSettings,
        budget: Budget,
        now: float,
    ) -> None:
        self.local = local
        self.remote = remote
        self.state = state
        self.settings = settings
        self._outbox = Outbox(local, remote)
        self._sender = Sender(budget, now)
        self._receiver: Receiver = Receiver(Reassembly())
        self._closing = Closing()
        self._liveness = Liveness(settings, now)
        self._handshake_at = now  # when our half of it left first; -inf once it is answered
        self._write_blocked = False
        self._end_announced = False
        self.events: deque[Event] = deque()  # what the shell has to act upon; `next_event` takes the oldest
        self.segments_sent = self.segments_received = self.bytes_sent = self.bytes_received = 0
        self.sacks_sent = self.sacks_received = 0

    @classmethod
    def dialling(
        cls,
        local: SocketAddress,
        remote: SocketAddress,
        now: float,
        settings: StreamSettings | None = None,
        budget: Budget | None = None,
    ) -> Connection:
        """Start a dial: the SYN is in `packets_to_send`; `send_syn` repeats it, when is the dialler's business.

        Args:
          local: this end.
          remote: the other one.
          now: the current time.
          settings: timeouts.
          budget: shared by all streams to the peer; None for one of its own.
        """
        connection = cls(local, remote, State.SYN_SENT, settings or StreamSettings(), budget or Budget(), now)
        connection.send_syn()
        return connection

    @classmethod
    def accepting(
        cls, syn: Packet, now: float, settings: StreamSettings | None = None, budget: Budget | None = None
    ) -> Connection:
        """Answer a SYN that was admitted. The connection is established as soon as the answer is sent."""
        local = SocketAddress(syn.destination, Port(syn.destination_port))
        remote = SocketAddress(syn.source, Port(syn.source_port))
        connection = cls(local, remote, State.ESTABLISHED, settings or StreamSettings(), budget or Budget(), now)
        connection._synchronise(syn, now)
        connection._send_syn_ack()
        return connection

    # --- the user's side ---------------------------------------------------------------------------------------------

    @property
    def send_room(self) -> int:
        """Bytes that `write` would take now."""
        return self._sender.room if self.state is State.ESTABLISHED else 0

    @property
    def readable(self) -> int:
        """Bytes that `read` would return now."""
        return self._receiver.data.queued_bytes

    @property
    def ended(self) -> bool:
        """True when nothing will become readable beyond what is."""
        return not self._receiver.is_open

    @property
    def has_input(self) -> bool:
        """True while something is readable, and for ever when nothing will become so any more."""
        receiver = self._receiver
        return receiver.data.queued_bytes > 0 or not receiver.is_open

    @property
    def owes_acknowledgment(self) -> bool:
        """True while a packet is waiting to be asked for: reading may have opened the window again."""
        return self._receiver.owed > 0

    @property
    def has_said_all(self) -> bool:
        """True once nothing is left to be sent but the FIN, and its repetitions."""
        return self.state is State.FIN_WAIT and self._closing.fin_is_out and self._sender.is_idle

    @property
    def ends_quietly(self) -> bool:
        """True if nothing follows but the answer to the FIN of a peer of our own kind, which does not wait for it."""
        return self.state is State.TIME_WAIT and not self._sender.peer_is_reference

    @property
    def holds_peer_fin(self) -> bool:
        """True while the peer's FIN waits for data that it overtook."""
        return self._closing.peer_fin is not None and self.state is State.ESTABLISHED

    def write(self, data: bytes | memoryview) -> int:
        """Take as much of `data` as there is room for; return how many bytes that were.

        After less than all an `Event.WRITABLE` announces room. 0 for ever on a stream that is not established.
        """
        size = len(data)
        taken = min(size, self.send_room)
        if taken < size:
            self._write_blocked = True
            data = data[:taken]
        if taken:
            self._sender.write(data, push=size >= SEGMENT)
        return taken

    def read(self, max_bytes: int) -> bytes:
        """Take bytes that arrived; `b""` if there are none (see `ended`). May open the window (see `owes_acknowledgment`)."""
        receiver = self._receiver
        data = receiver.data.read(max_bytes)
        if data and receiver.advertised < WINDOW_UPDATE_BELOW:
            receiver.on_read()
        return data

    def close(self, now: float) -> None:
        """Send what was written, then the FIN; what arrives from now on is discarded. May be called again."""
        if self.state is State.SYN_SENT:
            self._finish(Event.CLOSED)
        elif self.state is State.ESTABLISHED:
            self._receiver.close()
            self._start_closing(now)
        else:
            self._receiver.close()  # the end came from elsewhere; nobody will read what came before it

    def hurry(self, now: float) -> None:
        """Let the FIN of a closed stream wait no longer: the node is going. What was written may be lost."""
        if self.state is State.FIN_WAIT and not self._closing.fin_is_out:
            self._send_fin(now)

    def abort(self) -> None:
        """Reset the connection at once. A dial ends without a packet: its peer has seen a SYN at most."""
        if self.state not in {State.CLOSED, State.TIME_WAIT, State.SYN_SENT}:
            self._outbox.put(RST)
        self._finish(Event.CLOSED)

    # --- packets in --------------------------------------------------------------------------------------------------

    def receive_packets(self, packets: Sequence[Packet], now: float) -> None:
        """Work in packets of this connection that were received together, in order."""
        at = 0
        while at < len(packets):
            self.receive_packet(packets[at], now)
            at += 1
            if at < len(packets) and self.state is State.ESTABLISHED and self._closing.peer_fin is None:
                at += self._take_more_of_the_same(packets, at, now)

    def _take_more_of_the_same(self, packets: Sequence[Packet], at: int, now: float) -> int:
        """Take data in order that says nothing else than the packet before it did; return how many packets that were."""
        before = packets[at - 1]
        data = self._receiver.data
        taken, size = data.receive_run(packets, at, before.ack, before.window)
        if taken:
            self.segments_received += taken
            self.bytes_received += size
            self._receiver.on_run(taken, now)
            if not self.events or self.events[-1] is not Event.READABLE:
                self.events.append(Event.READABLE)
        return taken

    def receive_packet(self, packet: Packet, now: float) -> None:
        """Work in a packet of this connection, in the protocol's order of dispatch (§3.9)."""
        self.segments_received += 1
        flags = packet.flags
        if flags == ACK:
            if self.state is not State.SYN_SENT:
                self._on_ack_or_data(packet, now)
        elif flags & SYN:
            self._on_syn(packet, now)
        elif flags & FIN:
            self._on_fin(packet.seq, now, is_answer=bool(flags & ACK))
        elif flags & RST:
            self._on_reset()

    def _on_syn(self, packet: Packet, now: float) -> None:
        if not packet.flags & ACK:
            if self.state is State.ESTABLISHED:
                self._send_syn_ack()  # ours was lost
        elif self.state is State.SYN_SENT:
            self._synchronise(packet, now)
            self._note_handshake(now)
            self.state = State.ESTABLISHED
            if self._sender.peer_is_reference:
                self._receiver.owe()
            else:
                self._receiver.owe_some_day(now)  # our kind was established before it answered
            self.events.append(Event.OPENED)

    def _synchronise(self, packet: Packet, now: float) -> None:
        self._receiver.data.position = seq_add(packet.seq, 1)
        self._sender.open_window(packet.window)
        self._liveness.start(now)

    def _note_handshake(self, now: float) -> None:
        self._sender.on_handshake(now - self._handshake_at, now)
        self._handshake_at = -inf

    def _on_reset(self) -> None:
        if self.state is State.SYN_SENT:
            self._finish(Event.REFUSED)
        elif self.state is not State.CLOSED:
            self._end_receiving()
            self._finish(Event.CLOSED)

    def _on_fin(self, seq: int, now: float, *, is_answer: bool) -> None:
        if self.state is State.FIN_WAIT:
            # Our kind does not look at an answer to its answer any more; the original gets the one that it expects.
            self._accept_fin(seq, now, answer=not is_answer or self._sender.peer_is_reference)
        elif self.state is State.ESTABLISHED:
            self._liveness.on_heard(now)
            expected = self._receiver.data.position & _MASK
            if seq != expected and seq_lt(expected, seq):
                # It overtook data: wait for that, and say what is missing.
                self._closing.hold(seq, now)
                self._receiver.owe()
            else:
                self._accept_fin(seq, now)

    def _accept_fin(self, seq: int, now: float, *, answer: bool = True) -> None:
        """There is no half-close: what was not sent will not be, and what was sent is the peer's to keep."""
        self._sender.stop()
        if self._receiver.data.has_gap:
            self._receiver.data.discard_early()
        self._receiver.settle()
        if answer:
            self._outbox.put(FIN | ACK, seq=self._next_seq, ack=seq_add(seq, 1))
        self.state = State.TIME_WAIT
        self._liveness.check_at = inf
        self._closing.expire(now + self.settings.time_wait)
        self._end_receiving()
        if self._write_blocked:
            self._wake_writer()
        if not self._receiver.data.queued_bytes:
            self._receiver = _SPENT  # rows stay for ten seconds, and short streams make thousands of them

    def _on_ack_or_data(self, packet: Packet, now: float) -> None:
        quiet = self._liveness.on_heard(now)
        payload = packet.payload
        blocks = sack.decode(payload) if payload.startswith(sack.MAGIC) else None
        if blocks:
            self.sacks_received += len(blocks)
        if self.state is State.TIME_WAIT or self.state is State.CLOSED:
            return  # everything was answered
        if self._handshake_at != -inf:
            self._note_handshake(now)
        bare = not payload or blocks is not None
        sender = self._sender
        una = sender.snd_una
        news = sender.on_ack(packet.ack, packet.window, blocks, now, bare=bare)
        if sender.snd_una != una:
            if self.state is State.FIN_WAIT:
                self._closing.on_progress(now, self.settings.time_wait)
            if self._write_blocked:
                self._wake_writer()
        if not bare:
            self._on_data(packet, now)
        elif not payload and not news:
            self._maybe_answer_probe(quiet, now)

    def _on_data(self, packet: Packet, now: float) -> None:
        if self.state is not State.ESTABLISHED:
            return
        data = self._receiver.data
        before = data.position
        if self._receiver.on_segment(packet.seq, packet.payload, now):
            self.bytes_received += data.position - before
            if not self.events or self.events[-1] is not Event.READABLE:
                self.events.append(Event.READABLE)  # one for all that a batch brings
        peer_fin = self._closing.peer_fin
        if peer_fin is not None:
            if seq_leq(peer_fin, data.rcv_nxt):
                self._accept_fin(peer_fin, now)
            else:
                self._closing.hold(peer_fin, now)

    def _maybe_answer_probe(self, quiet: float, now: float) -> None:
        """Answer an empty acknowledgment that brought nothing, in the two cases that cannot become a loop (§9.3, §3.5)."""
        if self.state is State.ESTABLISHED and (
            self._receiver.has_better_news() or self._liveness.may_answer(quiet, now)
        ):
            self._liveness.on_answered(now)
            self._receiver.owe()

    # --- packets out -------------------------------------------------------------------------------------------------

    def packets_to_send(self, now: float) -> list[bytes]:
        """Return the packets to be sent now, encoded and in order; everything is handed out once."""
        out: list[bytes] = []
        if self.state is State.ESTABLISHED or self.state is State.FIN_WAIT:
            sender = self._sender
            if sender.outgoing.size or sender.queue.lost_count or not sender.snd_wnd:
                self._send_data(out, now)
            else:
                sender.pace_at = inf
            if self._receiver.owed:
                self._acknowledge(out)
            if self.state is State.FIN_WAIT and self._sender.is_idle and not self._closing.fin_is_out:
                self._send_fin(now)
        self._outbox.add_to(out)
        self.segments_sent += len(out)
        return out

    def send_syn(self) -> None:
        """Queue the SYN, for the first time or again."""
        self._outbox.put(SYN, window=self._receiver.window_field())

    def _send_syn_ack(self) -> None:
        self._outbox.put(SYN | ACK, ack=self._receiver.data.rcv_nxt, window=self._receiver.window_field())

    def _send_data(self, out: list[bytes], now: float) -> None:
        runs = self._sender.runs_to_send(now)
        if not runs:
            return
        receiver = self._receiver
        ack, window = receiver.data.position & _MASK, receiver.window_field()
        for run in runs:
            if run.transmissions == 1:
                self.bytes_sent += run.size
            out += self._outbox.segments(run.data, run.segment, run.start & _MASK, ack, window)
        self._liveness.active_at = now
        if not receiver.data.has_gap:
            # It carries the acknowledgment, but no report of what lies beyond a gap.
            receiver.settle_with_data(now, own_kind=not self._sender.peer_is_reference)

    def _acknowledge(self, out: list[bytes]) -> None:
        receiver = self._receiver
        seq, ack, window = self._next_seq, receiver.data.rcv_nxt, receiver.window_field()
        reports = receiver.data.sack_reports()
        if self._sender.peer_is_reference:
            if reports:
                # A reference sender has to count three of them to repair a hole; our own kind judges by time.
                reports += [reports[-1]] * (receiver.owed - len(reports))
            out += [self._outbox.packet(ACK, seq, step & _MASK, window) for step in receiver.steps()]
        receiver.settle()
        for blocks in reports:
            self.sacks_sent += len(blocks)
            out.append(self._outbox.packet(ACK, seq, ack, window, sack.encode(blocks)))
        if not reports:
            out.append(self._outbox.packet(ACK, seq, ack, window))

    @property
    def _next_seq(self) -> int:
        """Our next sequence number, which counts a FIN that has left."""
        sender = self._sender
        position = sender.snd_nxt + (sender.outgoing.size + 1 if self._closing.fin_is_out else 0)
        return position & _MASK

    def _send_fin(self, now: float) -> None:
        sender = self._sender
        self._emit_fin()
        sender.fin_end = sender.snd_nxt + sender.outgoing.size + 1
        self._closing.on_fin_sent(now, sender.rtt.rto, self.settings.time_wait)

    def _emit_fin(self) -> None:
        # Its number is after everything that was written, also after what has not left yet: a peer that orders its
        # FINs then knows that something is missing.
        self._outbox.put(FIN, seq=(self._sender.snd_nxt + self._sender.outgoing.size) & _MASK)

    # --- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is next needed; `math.inf` if never."""
        sender = self._sender
        return min(
            sender.retransmit_at, sender.loss_at, sender.pace_at, sender.probe_at, sender.outgoing.nagle_at,
            self._receiver.ack_at, self._liveness.check_at, self._closing.next_deadline,
        )  # fmt: skip

    def repeat_now(self, now: float) -> None:
        """Make due now what waits for a timeout that has grown: the path was dead and is no more."""
        self._sender.repeat_now(now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        sender, closing = self._sender, self._closing
        if self._receiver.ack_at <= now:
            self._receiver.on_ack_delay_over()
        if sender.outgoing.nagle_at <= now:
            sender.outgoing.push()  # also when windows do not let it leave now: a deadline that stays is due for ever
        if sender.probe_at <= now:
            self._probe_window(now)
        if not sender.handle_timeout(now):
            self._abandon()
            return
        if self._liveness.check_at <= now:
            self._check_alive(now)
        if closing.next_deadline <= now:
            self._close_on(now)

    def _close_on(self, now: float) -> None:
        """Let the end of the stream come a step closer."""
        sender, closing = self._sender, self._closing
        if closing.linger_at <= now and (sender.snd_wnd or not closing.wait_for_reader(self._liveness.heard_at, now)):
            self._send_fin(now)
        if closing.repeat_at <= now and closing.repeat(now):
            self._emit_fin()
        if closing.hold_at <= now and closing.peer_fin is not None:
            # The peer gets the answer that it expects (§3.6); our user learns that this was not all.
            self.events.append(Event.TRUNCATED)
            self._accept_fin(closing.peer_fin, now)
        if closing.expire_at <= now and not (
            sender.queue.in_flight and closing.wait_for_data(self._liveness.heard_at, now, self.settings.time_wait)
        ):
            self._finish(Event.CLOSED)

    def _probe_window(self, now: float) -> None:
        if now > self._liveness.heard_at + self.settings.idle_timeout:
            self._abandon()
            return
        run = self._sender.probe_window(now)
        if run is not None:
            if run.transmissions == 1:
                self.bytes_sent += run.size
            receiver = self._receiver
            seq, ack, window = run.start & _MASK, receiver.data.rcv_nxt, receiver.window_field()
            self._outbox.put(ACK, seq=seq, ack=ack, window=window, payload=run.data)

    def _check_alive(self, now: float) -> None:
        verdict = self._liveness.check(now)
        if verdict is Verdict.PROBE:
            self._receiver.owe()
        elif verdict is not Verdict.ALIVE:
            self.events.append(Event.IDLE_TIMEOUT if verdict is Verdict.IDLE else Event.DEAD_PEER)
            self._start_closing(now)  # what arrived is still the user's to read
            self._end_receiving()

    # --- endings -----------------------------------------------------------------------------------------------------

    def _start_closing(self, now: float) -> None:
        self.state = State.FIN_WAIT
        self._sender.outgoing.push()
        self._receiver.ack_at = inf
        self._liveness.check_at = inf
        self._closing.start(now)
        if self._write_blocked:
            self._wake_writer()

    def _abandon(self) -> None:
        self.events.append(Event.ABANDONED)
        self._outbox.put(RST)
        self._end_receiving()
        self._finish(Event.CLOSED)

    def _end_receiving(self) -> None:
        self._receiver.is_open = False
        if not self._end_announced:
            self._end_announced = True
            self.events.append(Event.END_OF_STREAM)

    def _wake_writer(self) -> None:
        """Tell a writer that did not find room enough, if there is some now, or never will be."""
        if self.state is not State.ESTABLISHED or self._sender.room >= SEND_BUFFER // 4:
            self._write_blocked = False
            self.events.append(Event.WRITABLE)

    def _finish(self, event: Event) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._sender.stop()
        self._receiver.is_open = False
        self._receiver.settle()
        self._liveness.check_at = inf
        self._closing.expire(inf)
        if self._write_blocked:
            self._wake_writer()
        self.events.append(event)
        if event is not Event.CLOSED:
            self.events.append(Event.CLOSED)

    def next_event(self) -> Event | None:
        """Return the next thing that the shell has to act upon, or None."""
        return self.events.popleft() if self.events else None

    def row(self) -> dict[str, Any]:
        """Return this connection as clients see it, without its id (`spec/ipc.md` §5.9)."""
        return {
            "local_port": self.local.port,
            "remote_port": self.remote.port,
            "remote_addr": str(self.remote.address),
            "state": self.state.value,
            "bytes_sent": self.bytes_sent,
            "bytes_recv": self.bytes_received,
            "segs_sent": self.segments_sent,
            "segs_recv": self.segments_received,
            "sack_sent": self.sacks_sent,
            "sack_recv": self.sacks_received,
            **self._sender.row(fin_out=self._closing.fin_is_out and self.state is State.FIN_WAIT),
            **self._receiver.row(),
        }
