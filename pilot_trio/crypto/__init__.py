"""Cryptography: pure wrappers over the `cryptography` package.

- `identity`: a node's Ed25519 key pair, and its file.
- `agreement`: from two X25519 keys to one for a session.
- `aead`: sealing and opening with it; `replay`: which counters were seen.
"""
