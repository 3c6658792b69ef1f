"""Sockets, files and clocks: thin Trio shells without protocol knowledge.

- `endpoint`, `addresses`: a host and a port, and what they are good for (no Trio in them).
- `service_nursery`: services that end after their users.
- `network`: the seam between the package and the outside world, and its real implementation.
- `transport`: one IPC client's byte stream, with the non-blocking send that the server's fast path needs.
- `socket_transport`: that on a Unix socket, with Linux's habits taken into account.
- `socket_file`, `unix_listener`: the daemon's Unix socket: safe creation and removal, accept (`spec/ipc.md` §1).
- `files`: atomic save and load.
"""
