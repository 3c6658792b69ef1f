"""Reliable streams as a pure state machine (`spec/transport.md` §3 to §9).

- `connection`: the machine: packets, writes, reads and timeouts in; packets, events and the next deadline out.
- `send_queue`: segments that were sent and are not acknowledged, and which of them are lost (RFC 2018, 8985).
- `reassembly`: segments that arrived, in order and early.
- `rtt`: the round-trip estimate and the retransmission timeout (RFC 6298).
- `congestion`: how much may be in flight, and how fast it may leave.
- `settings`: every constant, what the protocol fixes apart from what we chose.
"""
