"""Where something listens: a host and a port. Free of Trio, so that settings can name endpoints without loading it."""

from __future__ import annotations

from typing import NamedTuple


class Endpoint(NamedTuple):
    """A host and a port, written `host:port`, or `[host]:port` where the host is an IPv6 literal."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse `host:port`; raise `ValueError` that names the text. The host may be empty (any address)."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        try:
            host.encode()
        except UnicodeEncodeError:  # JSON can hold half a character, and no host is called that
            colon = ""
        if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 0xFFFF:
            raise ValueError(f"{text!r} is not host:port; write for example 127.0.0.1:9000")
        return cls(host, int(port))
