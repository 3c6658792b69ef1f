"""Measurements against the real Go daemon, in the same run: `python -m bench`, or `nox -s bench`.

- `peers`: starts a rendezvous and both daemons, each in a process and a home of its own.
- `load`: what clients do to a daemon: blocking sockets, no library of ours in the way.
- `report`: rows of rounds, medians, ratios, bars.
- `ipc_bench`: the rows of the IPC socket.
- `overlay_bench`: the rows of the data path between two nodes; `overlay_load`: its clients; `impairment`: a path that loses.

A part that wants rows of its own adds a module with `rows(peers, rounds) -> list[Row]` and names it in `__main__`.
"""
