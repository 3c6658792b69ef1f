"""The daemon: Trio shells that tie the pure strata to sockets, tasks and files.

- `node`: builds the parts and owns the nursery; start and stop order; no logic.
- `ipc`, `ipc_client`, `outbound`: the IPC server; one nursery per client, a reader and a writer joined by a channel.
  `in_flight` limits the requests of a client that wait; `hang_up` notices clients that left while their reader was waiting for something else.
- `dispatch`: what a command handler is and what it may do with its client.
- `commands/`: the handlers, one module per subject.
- `streams`, `datagrams`: connections and datagrams behind the data commands.
- `enrolment`, `resolver`, `state`: registration at the registry, lookups with caches, what the node knows of itself;
  `coalescing`: one question for all who ask the same.
- `trust`: handshakes, with `trust_messages`, `trust_store`, `trust_journal`, `courier` and `mailbox`; `events`, `webhook`: the bus and
  its delivery.
"""
