"""A rendezvous in a process of its own, to be killed. Prints its registry's port."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.serve import serve_rendezvous
from pilot_trio.rendezvous.settings import RendezvousConfig


async def main() -> None:
    settings = RendezvousConfig(registry=Endpoint("127.0.0.1", 0), beacon=None, store=Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(serve_rendezvous, settings))
        sys.stdout.write(f"{handle.registry.port}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main)
