"""Built-in services: each serves any `trio.abc.Listener` and knows nothing of the daemon.

- `echo`: port 7, what `ping` and `bench` talk to.
- `handshake`: port 444, trust.
- `dataexchange`, `eventstream`: messages and files, publish and subscribe.
"""
