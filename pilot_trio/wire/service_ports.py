"""The ports of a node's own services. Nodes and clients agree on them, as on a format (`spec/services.md`, port map)."""

from __future__ import annotations

from typing import Final

from pilot_trio.address import Port

ECHO_PORT: Final = Port(7)  # protocol, `spec/services.md` §2
HANDSHAKE_PORT: Final = Port(444)  # protocol, `spec/services.md` §1
DATA_EXCHANGE_PORT: Final = Port(1001)  # protocol, `spec/services.md` §3
EVENT_STREAM_PORT: Final = Port(1002)  # protocol, `spec/services.md` §4

SERVICE_PORTS: Final = frozenset({ECHO_PORT, HANDSHAKE_PORT, DATA_EXCHANGE_PORT, EVENT_STREAM_PORT})
