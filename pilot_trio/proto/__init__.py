"""Protocol state machines: what has to be decided, without sockets, tasks or clocks.

- `limits`: token buckets, one and keyed; every limiter of the package is made of these.
- `directory/`: what a registry knows, as a machine from request to answer (`spec/registry.md`).
- `ports`: listeners, the table of connections, ephemeral ports.
- `trust`, `envelope`, `policy`: trust records, signed requests, managed-network policies.

Pure: no Trio, no I/O, no logging; time comes in as `now`.
"""
