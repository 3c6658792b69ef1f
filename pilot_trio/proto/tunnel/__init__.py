"""The encrypted tunnel to every peer as one pure state machine (`spec/tunnel.md` §1 to §11).

- `machine`: `TunnelMachine`: datagrams, packets and timeouts in; datagrams, packets, events and the next deadline out.
- `peer`: what is known of one peer: its session, its route, the exchange under way, packets that wait for a key.
- `exchange`, `key_frames`, `installation`: asking for keys, judging those that come, making sessions of them.
- `succession`: a session and the one that it has replaced, until it is clear which of them is the living process's.
- `inbound`, `sealed`: datagrams in; `outbound`: packets out. `core`: what all these parts share.
- `session`: one agreed key: sealing, opening, replay windows, the gates that end it.
- `route`: direct or by relay, and why.
- `paths`: how peers are found again: paths in doubt, the way back from the relay, starting over.
- `upkeep`: when something is due for a peer; `upkeep_packets`: what the tunnel itself sends then.
- `events`: what the shell has to act upon, log or publish; `errors`: why a packet was not taken.
- `settings`: every constant, what the protocol fixes apart from what we chose.

State changes only after authentication: a session begins with a signed key frame that the registry's key verifies, an
endpoint moves with a packet that the session's key opens, and nothing that a stranger sends ends anything at once.
"""
