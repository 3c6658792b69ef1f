"""Protocol state machines: what has to be decided, without sockets, tasks or clocks.

- `limits`: token buckets, one and keyed; every limiter of the package is made of these.
- `directory/`: what a registry knows, as a machine from request to answer (`spec/registry.md`).
- `ports`: listeners, the table of connections, ephemeral ports.
- `stream/`, `sequence`: reliable streams between nodes, and the arithmetic of their sequence numbers.
- `tunnel/`: encrypted datagrams between nodes.
- `trust`, `trust_file`: trust records, and the file that keeps them; `handshake`: which messages are believed.
- `admission`: which strangers may open a stream.
- `address_watch`, `rx_watch`: whether this node has moved, or hears nothing; `beacon_choice`: which beacon it uses.
- `envelope`, `policy`: signed requests, documents of managed networks; `webhook_url`: which URLs a webhook may have.
- `reply_matcher`: which answer on an IPC connection belongs to which request.

Pure: no Trio, no I/O, no logging; time comes in as `now`.
"""
