"""Constants of the stream layer, and the few that an operator may change."""

from __future__ import annotations

from typing import Final

import attrs

# What the protocol fixes -------------------------------------------------------------------------------------------
SEGMENT: Final = 1152  # bytes of payload per segment, and the unit of the window field; protocol §2.1, §4.3
REFERENCE_WINDOW_MAX: Final = 1024  # segments; a peer that advertises more is not a released reference node, §12
REFERENCE_FLIGHT_MAX: Final = 128  # segments a reference peer can reorder; more than that is dropped silently, §4.4
FIN_LINGER: Final = 5.0  # seconds that a FIN waits for the data before it to be acknowledged; protocol §3.7
FIN_HOLD: Final = 15.0  # seconds of silence after which a FIN that overtook data is accepted; protocol §3.6
SYN_TIMEOUT: Final = 0.25  # seconds until the first SYN is sent again; protocol §3.4, doubles
TRANSMISSIONS_MAX: Final = 8  # of one segment, then the connection is abandoned; protocol §5.6
QUICK_ACKS: Final = 32  # segments acknowledged at once at the start and after a pause; protocol §4.2
KEEPALIVE_PROBES: Final = 3  # unanswered probes after which the peer is dead; protocol §3.5

# What we chose -----------------------------------------------------------------------------------------------------
RECEIVE_SLOTS: Final = 4096  # segments advertised: 40 ms at 100 MiB/s, and more than any released reference node has
SEND_BUFFER: Final = 1 << 20  # bytes taken from the application and not known to have arrived; the writer waits above
SEND_BUFFER_MAX: Final = 8 << 20  # bytes; the same for a stream whose path has proved to hold so much
OUTSTANDING_MAX: Final = 4096  # segments not acknowledged, whatever a peer's window; they are held for sending again
ACK_DELAY: Final = 0.005  # seconds until a lone segment is acknowledged; the reference's, so both ends behave alike
ANSWER_SEGMENTS: Final = 8  # segments of an answer that the next question may acknowledge, within `ACK_DELAY`
NAGLE_DELAY: Final = 0.04  # seconds that a short tail waits for more; the reference's value
HEADROOM: Final = 8  # slots of a peer's window left alone: a reference peer driven to zero never says that it has room
WINDOW_UPDATE_BELOW: Final = 64  # slots; having advertised less than this, we say when there is room again
HEADROOM_PROBE_FIRST: Final = 0.01  # seconds until a single segment asks a nearly full peer for its window; doubles
HEADROOM_PROBE_MAX: Final = 0.5  # seconds; the last slots then last for seconds of a reader's pause
PROBE_FIRST: Final = 0.5  # seconds until a closed window is probed with real data
PROBE_MAX: Final = 8.0  # seconds; each probe stalls a full reference peer for one second, hence the backoff
PROBE_MAX_OWN: Final = 2.0  # seconds; our own kind does not stall, and what told us of its room may have been lost
KEEPALIVE_PATIENCE: Final = 16.0  # seconds that we leave a quiet peer to probe us first: the reference looks every 15 s
KEEPALIVE_INTERVAL: Final = 10.0  # seconds between probes; a peer is found dead when the reference finds it so
ABANDON_AFTER: Final = 50.0  # seconds of timeouts before a peer is given up: the reference's eight take 39 to 59
PROBE_ANSWER_GAP: Final = 5.0  # seconds of quiet before a keepalive probe gets an answer; no answer is ever answered
LINGER_BLOCKED_MAX: Final = 120.0  # seconds that a FIN waits for a peer that answers but has no room for the data
FIN_INTERVAL_MAX: Final = 2.0  # seconds between repetitions of an unanswered FIN
FIN_RETRIES: Final = 6  # times an unanswered FIN is sent again; then the peer has gone, or has answered and forgotten


@attrs.frozen
class StreamSettings:
    """What an operator may change; the defaults are the protocol's."""

    idle_timeout: float = 120.0  # seconds without activity after which a stream is closed
    keepalive: float = 60.0  # seconds without activity after which the peer is probed
    time_wait: float = 10.0  # seconds that a closed connection keeps its ports
