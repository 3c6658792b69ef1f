"""Built-in services: each serves any `trio.abc.Listener` and knows nothing of the daemon.

- `echo`: port 7, what `ping` and `bench` talk to.
- `handshake`: port 444, trust.
- `dataexchange`: port 1001, messages and files, with `filestream` for resumable ones and `mailbox`, where they are kept.
- `eventstream`: port 1002, publish and subscribe.
- `reading`: exact amounts from a stream; `places`: one large thing for each peer at a time.
"""
