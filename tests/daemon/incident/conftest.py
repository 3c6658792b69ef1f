"""The incident's stage: one server, a client that floods and never reads, and a neighbour who wants an answer."""

from __future__ import annotations

from tests.daemon.ipc.conftest import Bench, bench

__all__ = ["Bench", "bench"]
