"""Constants of the tunnel, and what an operator may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

# What the protocol fixes (`spec/tunnel.md` §5 to §8) ----------------------------------------------------------------
SENDS_MAX: Final = 6  # key exchanges sent before giving up; protocol §7.1
COOLDOWN: Final = 5.0  # seconds after giving up in which packets are refused; protocol §7.1
DEBOUNCE: Final = 0.25  # seconds in which a repeated key frame is a mere duplicate; protocol §7.1
STALE_AFTER: Final = 6.0  # seconds without a decrypted packet after which a known key frame is answered; protocol §7.1
STALE_REPLY_GAP: Final = 1.0  # seconds between two such answers to one peer; protocol §7.1
REKEY_GAP: Final = 3.0  # seconds between two key requests to one peer; protocol §7.1
NEGATIVE_TIME: Final = 3.0  # seconds for which a failed key lookup is remembered; protocol §7.1
KEY_FRAME_RATE: Final = 5.0  # key frames per second and source; protocol §7.1
KEY_FRAME_BURST: Final = 5  # key frames; protocol §7.1
SOURCES_MAX: Final = 4096  # sources, peers and marks tracked per table; protocol §7.1
GATE_COUNT: Final = 5  # faults in a row that end a session; protocol §6
GATE_AGE_DECRYPT: Final = 3.0  # seconds that a session must have lived before failed openings end it; protocol §6
GATE_AGE_REPLAY: Final = 1.0  # seconds, likewise for replays and overtaken counters; protocol §6
SALVAGE_PACKETS: Final = 4  # packets sent again after a rekey; protocol §7.8
SALVAGE_AGE: Final = 5.0  # seconds that a packet may be old for that; protocol §7.8
QUEUE_PACKETS: Final = 64  # packets that wait for one peer's key; protocol §8.2
QUEUE_PEERS: Final = 256  # peers that packets may wait for; protocol §8.2
QUEUE_TIME: Final = 120.0  # seconds that packets wait; protocol §8.2
BLACKHOLE_SILENCE: Final = 8.0  # seconds without anything direct before a sent frame counts as a miss; protocol §10.2
BLACKHOLE_MISSES: Final = 3  # misses that turn a peer to the relay; protocol §10.2
SEND_ERRORS_MAX: Final = 3  # unreachable errors in a row that do the same; protocol §10.2
DIRECT_CLEARS: Final = 3  # direct packets that turn a peer back; protocol §10.4
KEEPALIVE_AFTER: Final = 25.0  # seconds without sending after which a NAT mapping is refreshed; protocol §11.1
PROBE_AFTER: Final = 55.0  # seconds of silence after which a path is probed; protocol §11.3
PROBE_INTERVAL: Final = 10.0  # seconds between probes; protocol §11.3
PROBES_MAX: Final = 3  # unanswered probes that reset a path; protocol §11.3
PROBE_PAUSE: Final = 120.0  # seconds after a reset without probes; protocol §11.3
RESET_GAP: Final = 30.0  # seconds between two path resets after giving up; protocol §7.1
IDLE_AFTER: Final = 120.0  # seconds without application traffic after which a peer is let go; protocol §11.5
FORGET_AFTER: Final = 300.0  # seconds without any frame after which it is forgotten; protocol §11.5
UPGRADE_INTERVAL: Final = 15.0  # seconds between attempts to leave the relay; protocol §10.6
UPGRADE_PROBES: Final = 5  # direct probes per attempt; protocol §10.6
UPGRADE_PROBE_GAP: Final = 0.2  # seconds between them; protocol §10.6
RELAY_PEERS_MAX: Final = 4096  # peers on the relay; protocol §10.3
PUNCHES: Final = 3  # datagrams that answer a punch command; protocol §13.2
PATH_PROBE: Final = b"pathprobe.v1"  # payload of a path probe; protocol §11.3

# What we chose -----------------------------------------------------------------------------------------------------
DOUBT_AFTER: Final = 2.0  # seconds without any answer after which a path is in doubt; longer than a round trip takes
DOUBT_GAPS: Final = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0)  # seconds until it is asked again; the last: a rest
RESOLVE_GAP: Final = 10.0  # seconds between two resolutions of a peer in doubt; spares the registry
UPGRADE_RESOLVE_GAP: Final = 30.0  # seconds between two resolutions of a relayed peer: it may be elsewhere by now
LOOK_GAP: Final = 25.0  # seconds between looks at a peer that nothing is due for: it may be in use again
OVERDUE_GAP: Final = 1.0  # seconds until the next look at a peer for which something due could not be done
RELAYED_PATIENCE: Final = 1.0  # seconds without anything direct after which a peer that relays is followed there
UPGRADE_FIRST: Final = 0.3  # seconds on the relay before the first attempt to leave it
RETRY_DELAYS: Final = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds between key exchanges; the reference loses 8 per loss
STRANGER_RATE: Final = 64.0  # answers per second to nodes without a session, all together; bounds reflection
EARLY_PACKETS: Final = 16  # sealed packets held that no key opens yet: they overtook the key frame
EARLY_TIME: Final = 1.0  # seconds that they are held
RELAYED_FIRST_TIME: Final = 1.0  # seconds in which the direct copy of a relayed key frame may still set the endpoint
PREDECESSOR_GAP: Final = 0.25  # seconds until a session that was replaced is asked, and between two questions
PREDECESSOR_QUESTIONS: Final = 4  # questions to it that need no other reason
REFUTED_TIME: Final = 60.0  # seconds for which a key frame is not believed that the living process has refuted
REFUTED_MAX: Final = 8  # such keys per peer; who has recorded more restarts than that is let in once a minute with each
TEARDOWN_GAP: Final = 10.0  # seconds between two sessions ended by junk: an attacker cannot keep one from living
EPOCHS_MAX: Final = 5  # nonce prefixes per session, each with its window; a peer that counts anew shows a new one
KEYS_MAX: Final = 65_536  # Ed25519 keys of peers remembered; a forgotten one is looked up again
PEERS_MAX: Final = 16_384  # peers known at once; the longest idle one makes room


def _nobody(_: int) -> bool:
    return False


def _everybody(_: int) -> bool:
    return True


@attrs.define
class TunnelSettings:
    """What an operator may change, and what the daemon knows."""

    encrypt: bool = True
    relay_only: bool = False
    path_watch: bool = True  # probe paths that have fallen silent, and reset them
    admits: Callable[[int], bool] = _everybody  # key frames of other nodes are dropped before any work
    is_trusted: Callable[[int], bool] = _nobody  # whose number may be published
    reply_whitelist: frozenset[int] | None = frozenset()  # nodes without the reply gap; None: all
    rekey_whitelist: frozenset[int] | None = frozenset()  # nodes without the rekey gap; None: all


def listed(whitelist: frozenset[int] | None, node: int) -> bool:
    """Say whether a whitelist names a node."""
    return whitelist is None or node in whitelist
