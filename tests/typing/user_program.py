"""A user's program, type-checked in an environment that has trio-typing installed. Never run."""

from __future__ import annotations

from functools import partial

import trio

import pilot_trio


async def talk() -> bytes:
    async with pilot_trio.open_driver() as node:
        info = await node.info()
        async with await node.dial(str(info.address), 7) as stream:
            await stream.send_all(b"hello")
            return bytes(await stream.receive_some(100))


async def embed() -> None:
    config = pilot_trio.Config(hostname="worker-1", public=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pilot_trio.serve, config))
        nursery.cancel_scope.cancel()


trio.run(talk)
