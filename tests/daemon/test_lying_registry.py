"""A registry that answers anything at all, for hours: the node goes on, whatever it is told, and says nothing of defects."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from pilot_trio.config import RegistryConfig
from pilot_trio.crypto.identity import Identity
from pilot_trio.driver import Driver
from pilot_trio.errors import PilotError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import MemoryNetwork, open_node, run_simulation
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame

REGISTRY = Endpoint("127.0.0.1", 9000)
KEY = Identity.from_seed(bytes(32)).public_key_b64
POLICY = {"version": 1, "rules": [{"name": "r", "on": "cycle", "match": "true", "actions": [{"type": "log"}]}]}

LIES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 65_536, 2**32, 2**64, 1.5, -0.0, 1e300),
    *(
        "",
        "x",
        "\ud800",
        "\x00",
        "é" * 300,
        "127.0.0.1:4001",
        "8.8.8.8:77",
        "[::1]:9",
        "a:b",
        "nowhere.example:1",
        "\ud800:1",
        "a..b:1",
    ),
    *(KEY, KEY[:-4], base64.b64encode(bytes(5)).decode(), "0:0000.0000.0002", "9:FFFF.FFFF.FFFF"),
    *([], [None], [1, 2, 3], [1, "a", None, {}], ["8.8.8.8:1", 5], {}, {"a": []}, POLICY, json.dumps(POLICY)),
]
MEMBERS = (
    *(
        "node_id",
        "address",
        "networks",
        "public_key",
        "public",
        "hostname",
        "tags",
        "real_addr",
        "endpoint",
        "lan_addrs",
    ),
    *("relay_only", "observed_addr", "requests", "responses", "trusted", "beacons", "allowed_ports", "expr_policy"),
    *("rules", "nodes", "members", "invites", "network_id", "time", "key_expiry_warning", "error", "type", "status"),
)
ROWS = ("from_node_id", "accept", "justification", "timestamp", "id", "addr", "has_expr_policy", "node_id", "name")


class Liar:
    """Says what a seed makes it say; now and then something that helps the node on to its next question."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    async def serve(self, stream: trio.abc.Stream) -> None:
        decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(65_536):
                decoder.feed(data)
                while (body := decoder.next_frame()) is not None:
                    if self._rng.random() < 0.02:
                        return  # no answer is an answer, too
                    await stream.send_all(encode_frame(self._answer(json.loads(body))))

    def _answer(self, request: dict[str, Any]) -> bytes:
        rng = self._rng
        if rng.random() < 0.02:
            return rng.randbytes(rng.randrange(40))
        kind = request.get("type")
        answer: dict[str, Any] = {"type": f"{kind}_ok"}
        if kind == "register" or rng.random() < 0.5:
            answer |= {"node_id": 1, "public_key": KEY, "networks": [1, 2], "real_addr": "127.0.0.1:4001"}
        for name in rng.sample(MEMBERS, rng.randrange(6)):
            answer[name] = self._lie()
        return json.dumps(answer).encode()

    def _lie(self) -> Any:
        rng = self._rng
        if rng.random() < 0.4:  # a list of rows, as most answers have
            return [{name: rng.choice(LIES) for name in rng.sample(ROWS, 5)} for _ in range(rng.randrange(4))]
        return rng.choice(LIES)


def commands(driver: Driver) -> list[Callable[[], Awaitable[object]]]:
    trust, networks, managed = driver.trust, driver.networks, driver.managed
    return [
        *(driver.info, driver.health, trust.pending, trust.trusted, networks.list, networks.invitations),
        *(partial(driver.resolve, "friend"), partial(driver.dial, 2, 7), partial(driver.send_datagram, 3, b"x", 5000)),
        *(partial(driver.prefer_direct, 2), partial(driver.set_hostname, "me"), partial(driver.set_public, True)),
        *(
            partial(driver.set_tags, ["a"]),
            driver.rotate_key,
            driver.deregister,
            partial(driver.broadcast, 1, 5, b"", "t"),
        ),
        *(partial(trust.request, 2), partial(trust.approve, 2), partial(trust.reject, 3), partial(trust.revoke, 2)),
        *(
            partial(networks.join, 1),
            partial(networks.leave, 1),
            partial(networks.members, 2),
            partial(networks.accept, 2),
        ),
        *(
            managed.status,
            managed.cycle,
            managed.reconcile,
            partial(managed.member_tags, 1),
            partial(managed.policy, 1),
        ),
        *(partial(managed.set_policy, 1, POLICY), partial(driver.signing.submit_badge, "b", "s")),
    ]


@pytest.mark.simulation
@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_a_registry_says_ends_a_node_or_shows_a_defect(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)

    async def attempt(command: Callable[[], Awaitable[object]]) -> None:
        with contextlib.suppress(PilotError), trio.move_on_after(60):
            await command()

    async def main() -> None:
        network = MemoryNetwork()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, Liar(seed).serve, [await network.listen_tcp(REGISTRY)])
            registry = RegistryConfig(endpoint=REGISTRY)
            settings: dict[str, Any] = {
                "rendezvous": None,
                "registry": registry,
                "admin_token": "t",
                "networks": [1, 3],
            }
            async with open_node(network=network, **settings) as node:
                ends_at = trio.current_time() + 1200
                while trio.current_time() < ends_at:
                    async with trio.open_nursery() as clients:
                        for command in rng.sample(commands(node.driver), 4):
                            clients.start_soon(attempt, command)
                    await trio.sleep(rng.uniform(0, 10))
                assert (await node.driver.health()).status == "ok"
                assert node.handle.statistics().tunnel.defects == 0
            nursery.cancel_scope.cancel()

    run_simulation(main, seed=seed)
    defects = [record for record in caplog.records if record.exc_info is not None or record.levelno > logging.ERROR]
    assert not defects, "\n".join(caplog.handler.format(record) for record in defects)
