"""What is said of a connection is what it did: on a network whose losses and delays are known."""

from __future__ import annotations

import pytest
import trio

from pilot_trio.driver import Driver, PilotStreamStatistics
from pilot_trio.testing import Link, open_node_network
from tests.testing.overlay import ECHO, content, digest, echo, simulate

DELAY = 0.02  # seconds, each way


async def at_all_places(driver: Driver, conn_id: int) -> PilotStreamStatistics:
    """Return the row of a connection, from Info; the command line prints the same rows."""
    (row,) = (row for row in (await driver.info()).streams() if row.conn_id == conn_id)
    return row


def test_a_transfer_shows_its_round_trip_window_flight_and_repetitions() -> None:
    async def main() -> None:
        data = content(1 << 20, 1)
        async with open_node_network(2, seed=1, link=Link(delay=DELAY, loss=0.02)) as nodes:
            stream = await nodes[0].driver.dial(nodes[1].address, ECHO)
            middle: list[PilotStreamStatistics] = []

            async def look() -> None:
                while True:
                    await trio.sleep(0.25)  # Info is kept for a fifth of a second
                    middle.append(await stream.statistics())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                with trio.fail_after(60):
                    assert digest(await echo(stream, data)) == digest(data)
                nursery.cancel_scope.cancel()
            await trio.sleep(1)
            end = await stream.statistics()
            assert end == await at_all_places(nodes[0].driver, stream.conn_id)

            assert (end.state, end.relay, end.relay_reason) == ("ESTABLISHED", False, "")
            assert (end.remote, end.bytes_sent, end.bytes_received) == (stream.remote, len(data), len(data))
            assert 2 * DELAY <= end.srtt < 4 * DELAY
            assert end.in_flight == 0
            assert max(row.in_flight for row in middle) > 100_000  # it did fill the path
            assert all(row.in_flight <= row.cwnd + 100_000 for row in middle)
            assert [row.bytes_sent for row in middle] == sorted(row.bytes_sent for row in middle)
            # What the network lost, acknowledgments among it, was sent again; hardly anything else.
            lost = nodes.network.direction(nodes.hosts[0], nodes.hosts[1]).counted.lost
            assert lost > 10
            assert lost / 2 < end.retransmits < lost * 2
            await stream.aclose()
            await trio.sleep(0.25)
            assert (await at_all_places(nodes[0].driver, stream.conn_id)).state != "ESTABLISHED"

    simulate(main, 1)


def test_a_perfect_path_repeats_nothing() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=2, link=Link(delay=DELAY)) as nodes:
            stream = await nodes[0].driver.dial(nodes[1].address, ECHO)
            await echo(stream, content(500_000, 2))
            await trio.sleep(1)
            assert (await stream.statistics()).retransmits == 0

    simulate(main, 2)


def test_a_path_by_relay_says_so_and_why() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=3, link=Link(delay=DELAY), relay_only=True) as nodes:
            listener = await nodes[1].driver.listen(5000)
            stream = await nodes[0].driver.dial(nodes[1].address, 5000)
            accepted = await listener.accept()
            for end in (stream, accepted):
                report = await end.statistics()
                assert report.relay
                assert report.relay_reason
                peers = (await nodes[0].driver.info()).raw["peer_list"]
                assert [row["relay_reason"] for row in peers] == ["relay only"]

    simulate(main, 3)


def test_a_stream_that_is_forgotten_has_no_report() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=4) as nodes:
            stream = await nodes[0].driver.dial(nodes[1].address, ECHO)
            await stream.aclose()
            await trio.sleep(600)
            with pytest.raises(trio.ClosedResourceError, match=f"knows no stream {stream.conn_id}"):
                await stream.statistics()

    simulate(main, 4)
