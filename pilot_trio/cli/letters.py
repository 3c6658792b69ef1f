"""Sending messages from the side of a command: one letter, one acknowledgement (`spec/cli.md` §6.8)."""

from __future__ import annotations

import time
from typing import Any, Final

import attrs

from pilot_trio.address import Address
from pilot_trio.cli.exchange import Exchange, dial_service, hang_up
from pilot_trio.cli.ipc_client import DaemonGone, DaemonTimeout, IPCClient
from pilot_trio.cli.output import CliError
from pilot_trio.errors import DaemonError
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.dataexchange import FrameType
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT

_UNKNOWN_TAGGED: Final = ("ACK UNKNOWN(10)", "ERR UNKNOWN(10)")  # a receiver that does not know message ids


@attrs.frozen
class Letter:
    """What is sent, apart from its id."""

    frame_type: FrameType
    payload: bytes
    reply_to: str
    trace: bool

    def frame(self, message_id: str, *, tagged: bool) -> bytes:
        """Return the frame; a timed one carries the time of this call."""
        frame_type, payload = self.frame_type, self.payload
        if self.trace:
            payload = wire.encode_trace(wire.Trace(frame_type, time.time_ns(), payload))
            frame_type = FrameType.TRACE
        if not tagged:
            return wire.encode_frame(frame_type, payload)
        return wire.encode_tagged(frame_type, payload, message_id=message_id, reply_to=self.reply_to)


class Sender:
    """Sends letters to one node, over one stream each or one for all."""

    def __init__(
        self, client: IPCClient, address: Address, deadline: float, *, reuse: bool, resend: bool, first_contact: bool
    ) -> None:
        self.deadline = deadline
        self.may_resend = resend
        self.first_contact = first_contact
        self.attempts = 0
        self._client = client
        self._address = address
        self._reuse = reuse
        self._open: Exchange | None = None

    def send(self, letter: Letter, message_id: str, sequence: int) -> dict[str, Any]:
        """Send one letter, wait for its acknowledgement, return its row.

        A stream that ends without one is tried again on another: the receiver recognises the id of a message that it has.

        Raises:
          CliError: the letter was not acknowledged.
        """
        reused = self._open is not None
        try:
            tagged, ack = self._attempt(letter, message_id)
        except (DaemonGone, DaemonTimeout) as exc:
            if not self.may_resend or self.deadline <= time.monotonic():
                raise self._unacknowledged(exc) from exc
            self.close()
            reused = False
            try:
                tagged, ack = self._attempt(letter, message_id)
            except (DaemonGone, DaemonTimeout) as again:
                raise self._unacknowledged(again) from again
        if ack.startswith("ERR "):
            raise CliError("connection_failed", f"the receiver did not store the message: {ack}")
        if not self._reuse:
            self.close()
        row = {"seq": sequence, "bytes": len(letter.payload), "ack": ack, "message_id": message_id}
        return row | {"tagged": tagged, "reused": reused}

    def close(self) -> None:
        """Hang up, if a stream is open."""
        if self._open is not None:
            hang_up(self._open.stream)
            self._open = None

    def _attempt(self, letter: Letter, message_id: str) -> tuple[bool, str]:
        """Return whether the message went with its id, and the acknowledgement."""
        if self._open is None:
            left = max(self.deadline - time.monotonic(), 0.001)
            dialled = dial_service(
                self._client, self._address, DATA_EXCHANGE_PORT, timeout=left, again=self.first_contact
            )
            self.attempts = dialled.attempts
            self._open = Exchange(dialled.stream)
        try:
            ack = self._ask(self._open, letter.frame(message_id, tagged=True))
            if not ack.startswith(_UNKNOWN_TAGGED):
                return True, ack
            return False, self._ask(self._open, letter.frame(message_id, tagged=False))
        except DaemonError as exc:
            raise DaemonGone(f"the daemon refused the data: {exc}") from exc

    def _ask(self, exchange: Exchange, frame: bytes) -> str:
        _, answer = exchange.ask(frame, self.deadline)
        return answer.decode("utf-8", "replace")

    def _unacknowledged(self, exc: DaemonGone | DaemonTimeout) -> CliError:
        if isinstance(exc, DaemonTimeout):
            return CliError("timeout", f"no acknowledgement from {self._address}", "increase with --timeout")
        return CliError("connection_failed", f"send to {self._address}: {exc}")
