"""The registry client: a Trio shell around `wire.registry` (`spec/registry.md` §2).

- `client`: calls with retries and deadlines over a small pool of connections.
- `connection`: one connection: dial, exchange.
- `tls`: how a registry proves who it is.
- `backoff`: how long to wait before trying again (pure).
"""
