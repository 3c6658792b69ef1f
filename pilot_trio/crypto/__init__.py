"""Cryptography: pure wrappers over the `cryptography` package. `identity` holds the node's Ed25519 key pair."""
