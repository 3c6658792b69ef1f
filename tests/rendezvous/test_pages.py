from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.directory import Counts, NetworkView, NodeView
from pilot_trio.rendezvous.beacon_server import BeaconStatistics, Drop
from pilot_trio.rendezvous.connection import Ending
from pilot_trio.rendezvous.overview import ONLINE_WITHIN, Overview, RendezvousStatistics
from pilot_trio.rendezvous.page_html import ROWS_MAX
from pilot_trio.rendezvous.pages import make_app, serve_pages
from pilot_trio.rendezvous.registry_server import RegistryStatistics
from pilot_trio.rendezvous.store import StoreStatistics

NOW = 1_000_000.0
SECRET_PLACE = "203.0.113.77:4000"


def make_node(number: int, **fields: Any) -> NodeView:
    node = NodeView(
        node_id=NodeId(number),
        hostname=f"node{number}",
        public=True,
        endpoint=f"198.51.100.{number % 250}:4000",
        version="1.18.0",
        last_seen=NOW - 10,
        relay_only=False,
        tags=(),
        networks=(),
        badge=None,
    )
    return attrs.evolve(node, **fields)


STATISTICS = RendezvousStatistics(
    uptime=3725.0,
    directory=Counts(nodes=3, node_ids=5, public_nodes=2, networks=1, trust_pairs=4, waiting_requests=1, beacons=0),
    registry=RegistryStatistics(
        connections=8,
        accepted=9,
        refused=1,
        starved=0,
        requests={"heartbeat": 40, "lookup": 2},
        held_bytes=17,
        endings=dict.fromkeys(Ending, 0) | {Ending.IDLE: 6},
    ),
    beacon=BeaconStatistics(
        endpoints=3, discovers=30, moves_refused=1, strangers=2, notifies=5, drops=dict.fromkeys(Drop, 0)
    ),
    store=StoreStatistics(persistent=True, transactions=11, rows=12, failures=0, unwritten=0),
)


class Fake:
    """A directory to look at."""

    def __init__(self, nodes: list[NodeView], networks: list[NetworkView]) -> None:
        self.rows = nodes
        self.network_rows = networks
        self.looks = 0
        self.statistics = STATISTICS

    def nodes(self) -> list[NodeView]:
        self.looks += 1
        return self.rows

    def networks(self) -> list[NetworkView]:
        return self.network_rows

    def overview(self) -> Overview:
        return Overview(self, lambda: self.statistics, lambda: NOW)


@pytest.fixture
def fake() -> Fake:
    return Fake(
        [
            make_node(1, tags=("web",), networks=(1,)),
            make_node(2, public=False, endpoint=SECRET_PLACE, hostname="hideout"),
            make_node(3, relay_only=True, endpoint=SECRET_PLACE, last_seen=NOW - ONLINE_WITHIN),
        ],
        [
            NetworkView(
                network_id=1,
                name="lab",
                join_rule="open",
                enterprise=False,
                managed=False,
                members=1,
                created_at=NOW,
            )
        ],
    )


def client(fake: Fake, host: str = "127.0.0.1", base: str = "http://localhost:8000") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(fake.overview()), client=(host, 1234))
    return httpx.AsyncClient(transport=transport, base_url=base)


@pytest.mark.parametrize("path", ["/", "/api/nodes", "/api/stats", "/metrics", "/healthz"])
@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
async def test_where_private_nodes_are_is_shown_to_nobody(fake: Fake, path: str, host: str) -> None:
    async with client(fake, host) as web:
        assert SECRET_PLACE not in (await web.get(path)).text


async def test_the_page_shows_nodes_networks_and_health(fake: Fake) -> None:
    async with client(fake) as web:
        answer = await web.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = re.sub(r"<[^>]+>", " ", answer.text)
    for expected in (
        "healthy",
        "up 1 h 2 min",
        "2 of 3",
        "0:0000.0000.0001",
        "198.51.100.1:4000",
        "hideout",
        "private",
        "by relay",
        "10 s ago",
        "lab",
        "web",
    ):
        assert expected in text, expected


async def test_strangers_see_public_nodes_only(fake: Fake) -> None:
    async with client(fake, "192.0.2.1") as web:
        page = (await web.get("/")).text
        assert "hideout" not in page and "node1" in page
        assert "1 private node not shown" in page
        assert (await web.get("/api/nodes")).status_code == 403


@pytest.mark.parametrize(
    "host, base, headers",
    [
        ("192.0.2.1", "http://localhost", {}),
        ("127.0.0.1", "http://rebound.example", {}),
        ("127.0.0.1", "http://192.0.2.9", {}),
        ("127.0.0.1", "http://localhost", {"X-Forwarded-For": "192.0.2.1"}),
        ("127.0.0.1", "http://localhost", {"Forwarded": "for=192.0.2.1"}),
        ("testclient", "http://localhost", {}),
    ],
)
async def test_who_only_seems_to_be_local_is_not(fake: Fake, host: str, base: str, headers: dict[str, str]) -> None:
    async with client(fake, host, base) as web:
        assert (await web.get("/api/nodes", headers=headers)).status_code == 403
        assert "hideout" not in (await web.get("/", headers=headers)).text


@pytest.mark.parametrize("base", ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"])
async def test_the_nodes_are_listed_for_this_machine(fake: Fake, base: str) -> None:
    async with client(fake, base=base) as web:
        one, two, three = (await web.get("/api/nodes")).json()["nodes"]
    assert one["endpoint"] == "198.51.100.1:4000" and one["networks"] == [1] and one["online"] is True
    assert two["hostname"] == "hideout" and "endpoint" not in two
    assert three["relay_only"] is True and three["online"] is False


async def test_whatever_nodes_call_themselves_is_text_on_the_page(fake: Fake) -> None:
    evil = "<script>alert('x')</script>\"&"
    fake.rows[:] = [make_node(1, hostname=evil, version=evil, endpoint=evil, tags=(evil,))]
    fake.network_rows[:] = [attrs.evolve(fake.network_rows[0], name=evil, join_rule=evil)]
    async with client(fake) as web:
        page = (await web.get("/")).text
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") == 6


async def test_the_page_may_load_and_run_nothing(fake: Fake) -> None:
    async with client(fake) as web:
        headers = (await web.get("/")).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "count, more", [(ROWS_MAX, None), (ROWS_MAX + 1, "1 more node<"), (ROWS_MAX + 5, "5 more nodes")]
)
async def test_long_tables_are_cut(fake: Fake, count: int, more: str | None) -> None:
    fake.rows[:] = [make_node(number) for number in range(1, count + 1)]
    async with client(fake) as web:
        page = (await web.get("/")).text
    assert page.count("<tr>") == 2 + ROWS_MAX + 1
    assert (more or "") in page and ("more node" in page) == (more is not None)


async def test_an_empty_registry_has_a_page(fake: Fake) -> None:
    fake.rows.clear()
    fake.network_rows.clear()
    fake.statistics = attrs.evolve(STATISTICS, beacon=None, uptime=5.0)
    async with client(fake) as web:
        page = (await web.get("/")).text
        assert page.count("none yet") == 2 and "Beacon" not in page and "up 5 s" in page
        assert "pilot_beacon" not in (await web.get("/metrics")).text


async def test_health(fake: Fake) -> None:
    async with client(fake) as web:
        answer = await web.get("/healthz")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "ok", "version": "1.0", "uptime_seconds": 3725, "nodes_online": 2},
        )


async def test_a_database_that_cannot_be_written_is_not_healthy(fake: Fake) -> None:
    fake.statistics = attrs.evolve(STATISTICS, store=attrs.evolve(STATISTICS.store, failures=1, unwritten=3))
    async with client(fake) as web:
        answer = await web.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "degraded")
        assert "cannot be written" in (await web.get("/")).text


async def test_stats_are_sums_for_everybody(fake: Fake) -> None:
    async with client(fake, "192.0.2.1") as web:
        answer = await web.get("/api/stats")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.json() == {
        "total_nodes": 5,
        "active_nodes": 3,
        "online_nodes": 2,
        "total_trust_links": 4,
        "total_requests": 42,
        "total_networks": 1,
        "uptime_secs": 3725,
        "versions": {"v1.18.0": 3},
    }


async def test_metrics_can_be_parsed_and_say_what_happened(fake: Fake) -> None:
    async with client(fake) as web:
        answer = await web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["pilot_nodes",] == 3
    assert samples["pilot_nodes_online",] == 2
    assert samples["pilot_registry_requests_total", "heartbeat"] == 40
    assert samples["pilot_registry_endings_total", "idle"] == 6
    assert samples["pilot_beacon_notifies_total",] == 5
    assert samples["pilot_store_transactions_total",] == 11
    assert samples["process_open_fds",] > 0


async def test_pictures_are_not_taken_more_often_than_needed(fake: Fake, autojump_clock: object) -> None:
    async with client(fake) as web:
        for _ in range(5):
            await web.get("/")
            await web.get("/metrics")
        assert fake.looks == 1
        await trio.sleep(1.01)
        await web.get("/")
        assert fake.looks == 2


async def test_other_paths_and_methods_are_refused(fake: Fake) -> None:
    async with client(fake) as web:
        assert (await web.get("/etc/passwd")).status_code == 404
        assert (await web.post("/")).status_code == 405


async def test_pages_are_served_over_a_real_socket_until_cancelled(fake: Fake) -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(serve_pages, Endpoint("127.0.0.1", 0), fake.overview()))
        async with httpx.AsyncClient(base_url=url, trust_env=False) as web:
            assert json.loads((await web.get("/healthz")).text)["status"] == "ok"
            assert "server" not in (await web.get("/")).headers
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", httpx.URL(url).port or 0)


async def test_a_taken_port_is_an_error_at_the_start(fake: Fake) -> None:
    async with trio.open_nursery() as nursery:
        url = httpx.URL(await nursery.start(partial(serve_pages, Endpoint("127.0.0.1", 0), fake.overview())))
        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            async with trio.open_nursery() as inner:
                await inner.start(partial(serve_pages, Endpoint("127.0.0.1", url.port or 0), fake.overview()))
        nursery.cancel_scope.cancel()
