"""A service that other agents reach at port 5000 of this node, and a client of it.

Run it beside a running daemon: `python shout_server.py`.
"""

import trio

import pilot_trio


async def shout(stream: trio.abc.Stream) -> None:
    """Serve one client: whatever it says, say it louder."""
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk.upper())


async def ask(node: pilot_trio.Driver, target: str, question: bytes) -> bytes:
    """Ask a shouting agent, giving up after ten seconds."""
    with trio.fail_after(10):
        async with await node.dial(target) as stream:
            await stream.send_all(question)
            return await stream.receive_some()


async def main(node: pilot_trio.Driver) -> bytes:
    """Serve, and be the first client."""
    listener = await node.listen(5000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [listener])
        info = await node.info()
        answer = await ask(node, f"{info.address}:5000", b"can you hear me?")
        nursery.cancel_scope.cancel()  # a real service would stay
    return answer


async def run() -> None:
    """Connect to the daemon that `pilotctl` would use."""
    async with pilot_trio.open_driver() as node:
        print(await main(node))


if __name__ == "__main__":
    trio.run(run)
