"""Reliable streams as a pure state machine (`spec/transport.md` §3 to §9).

- `connection`: the machine: packets, writes, reads and timeouts in; packets, events and the next deadline out.
- `states`: what a stream can be, and what its user is told.
- `sender`: the sending half: what leaves when, and what is done about silence and closed windows.
  - `segment_size`: how large segments may be on the path to a peer (RFC 8899).
  - `outgoing`: bytes not cut into segments yet, and Nagle's algorithm.
  - `send_queue`: segments that were sent and are not acknowledged, and which of them are lost (RFC 2018, 8985).
  - `rtt`: the round-trip estimate and the retransmission timeout (RFC 6298).
  - `congestion`: how much may be in flight, and how fast it may leave.
  - `budget`: what all streams to one peer may have in flight together.
- `receiver`: the receiving half: what was received, and when to say so.
  - `reassembly`: segments that arrived, in order and early.
- `outbox`: how packets are made, and those that wait to be asked for.
- `liveness`: keepalive: quiet peers, dead peers, and probes that are answered.
- `closing`: when the FIN leaves, and how often.
- `settings`: every constant, what the protocol fixes apart from what we chose.
"""
