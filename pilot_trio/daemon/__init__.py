"""The daemon: Trio shells that tie the pure strata to sockets, tasks and files.

The node and its files:

- `node`: builds the parts and owns the nursery; start and stop order; no logic.
- `state`: what the node knows of itself; `homedir`: its identity and account; `key_rotation`: another key for it.
- `builtin_services`: echo, handshake, data exchange and event stream on the node's own ports.
- `events`, `webhook`: the bus and its delivery.

Local programs:

- `ipc`, `ipc_session`, `ipc_client`, `outbound`: the IPC server; one nursery per client, a reader and a writer joined by a queue.
- `dispatch`: what a command handler is and what it may do with its client; `commands/`: the handlers, by subject.
- `in_flight`: the requests of a client that wait; `hang_up`: clients that left while their reader was waiting;
  `freed_memory`: what clients leave behind.

Streams and datagrams:

- `streams`: the table of connections; `connection`: one end of a stream; `port_listener`: a bound port.
- `local_stream`: inside this node; `remote_stream`: to others; `overlay`: both as Trio's streams and listeners.
- `datagrams`: what goes without a stream; `datagram_sender`: its way out; `pacing`: how floods of it are held up.
- `carrier`: where packets go; `admission`: who may come in; `dialling`: a dial under way; `given_up`: one that nobody
  waits for any more; `farewells`: packets that nobody waits for.
- `turn`: what is held back until the end of the work at hand.

Tunnels:

- `tunnel`: all tunnels, as the rest of the node sees them; `tunnel_loop`: the UDP socket, and the machine that it drives.
- `tunnel_lookups`: questions to the registry; `tunnel_log`: lines and events; `tunnel_pings`: signs of life.
- `beacon_client`, `beacon_list`: the beacon in use, and those that there are.
- `self_watch`: the own address, silence, sleep; `same_lan`: neighbours behind one router.

The registry:

- `enrolment`: register and stay registered; `networks`, `managed`: memberships and policies.
- `resolver`: lookups; `hostname_cache`, `timed_cache`: what they have brought; `coalescing`: one question for all who ask
  the same.
- `trust`: who is trusted, with `trust_messages`, `trust_store`, `trust_journal`, `courier` and `mailbox`.

For all of these: `interfaces`: the parts as others see them; `saved_file`: a file that follows what is in memory;
`grace`: work that a cancellation must not cut in half.
"""
