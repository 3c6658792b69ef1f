"""Sockets, files and clocks: thin Trio shells without protocol knowledge.

- `endpoint`, `addresses`: a host and a port, and what they are good for (no Trio in them).
- `network`: the seam between the package and the outside world, and its real implementation.
- `udp`: a UDP socket in batches; `renewable_socket`: one that can be exchanged under those who use it.
- `transport`: one IPC client's byte stream, with the non-blocking send that the server's fast path needs;
  `socket_transport`: that on a Unix socket, with Linux's habits taken into account.
- `socket_file`, `unix_listener`: the daemon's Unix socket: safe creation and removal, accept (`spec/ipc.md` §1).
- `timers`: one task for all deadlines.
- `service_nursery`: services that end after their users; `background`: a nursery behind a context manager.
- `files`: atomic save and load; `file_lock`: a file that one process uses at a time.
"""
