"""Datagrams: readings sent to a port, collected until enough have come."""

import trio

import pilot_trio

PORT = 6000


async def collect(node: pilot_trio.Driver, count: int, *, task_status: trio.TaskStatus[None]) -> None:
    """Print `count` readings. Reports as soon as none can be missed any more."""
    async with node.datagrams(PORT) as readings:
        task_status.started()
        for _ in range(count):
            reading = await readings.receive()
            print(reading.source, reading.data.decode())
        print("lost because we were slow:", readings.statistics().dropped)


async def main(node: pilot_trio.Driver) -> None:
    """Collect what we send to ourselves."""
    info = await node.info()
    async with trio.open_nursery() as nursery:
        await nursery.start(collect, node, 3)
        for celsius in (20.5, 20.7, 20.6):
            await node.send_datagram(info.address, f"{celsius} °C".encode(), PORT)


async def run() -> None:
    """Connect to the daemon that `pilotctl` would use."""
    async with pilot_trio.open_driver() as node:
        await main(node)


if __name__ == "__main__":
    trio.run(run)
