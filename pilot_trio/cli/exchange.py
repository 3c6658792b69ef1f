"""Data exchange from the side of a command: frames over one stream of the plain socket (`spec/services.md` §3)."""

from __future__ import annotations

from typing import Final, NamedTuple

from pilot_trio.address import Address
from pilot_trio.cli.ipc_client import ClientStream, DaemonGone, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import DIAL_TIMEOUT, REQUEST_TIMEOUT, dial_hint
from pilot_trio.errors import DaemonError
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT, EVENT_STREAM_PORT

REPLY_MAX: Final = 1 << 20  # bytes of one answer; the longest that the protocol knows is an error text
_SERVICE: Final[dict[int, str]] = {DATA_EXCHANGE_PORT: "data exchange", EVENT_STREAM_PORT: "event stream"}
_FIRST_CONTACT_ERRORS: Final = ("dial timeout", "key exchange")  # pass by themselves; `spec/cli.md` §6.8


class Dialled(NamedTuple):
    """An open stream, and how many attempts it took."""

    stream: ClientStream
    attempts: int


def dial_service(
    client: IPCClient, address: Address, port: int, *, timeout: float = DIAL_TIMEOUT, again: bool = False
) -> Dialled:
    """Open a stream to a service; `again` allows a second attempt while a first contact settles.

    Raises:
      CliError: `connection_failed`, with the daemon's reason.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return Dialled(client.dial(address, port, deadline_in(timeout)), attempts)
        except (DaemonError, DaemonTimeout, DaemonGone) as exc:
            reason = "dial timeout" if isinstance(exc, DaemonTimeout) else str(exc)
            # Only the daemon's own word is a reason to repeat: after our deadline its answer may still come.
            passing = isinstance(exc, DaemonError) and any(text in reason for text in _FIRST_CONTACT_ERRORS)
            if again and passing and attempts == 1:
                continue
            hint = dial_hint(reason, address, port)
            text = f"cannot connect to {address} ({_SERVICE[port]} port {port}): {reason}"
            raise CliError("connection_failed", text, hint) from exc


def hang_up(stream: ClientStream) -> None:
    """Close a stream whose work is done; that it was gone already is no failure."""
    try:
        stream.close(deadline_in(REQUEST_TIMEOUT))
    except (DaemonError, DaemonTimeout, DaemonGone):
        return


class Exchange:
    """Frames out, answers in, over one stream."""

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    def ask(self, frame: bytes, deadline: float) -> tuple[int, bytes]:
        """Send a frame and return type and payload of its answer; raises what `reply` raises."""
        self.stream.send(frame, deadline)
        return self.reply(deadline)

    def reply(self, deadline: float) -> tuple[int, bytes]:
        """Return type and payload of the next answer.

        Raises:
          DaemonTimeout: it did not come by the deadline.
          DaemonGone: the stream ended first, or brought something that is no answer.
        """
        frame_type, length = wire.HEADER.unpack(self._exactly(wire.HEADER.size, deadline))
        if length > REPLY_MAX:
            raise DaemonGone(f"the peer announces an answer of {length} bytes")
        return frame_type, self._exactly(length, deadline)

    def _exactly(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            data = self.stream.receive(deadline)
            if not data:
                raise DaemonGone("the peer closed the stream without an answer")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
