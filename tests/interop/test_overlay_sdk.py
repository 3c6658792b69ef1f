"""The real Python SDK on both ends, its daemons of both kinds: streams, datagrams, messages, files, events."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.sdk import run_sdk
from tests.interop.traffic import dial_until_answered

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PAIRS: list[tuple[Kind, Kind]] = [("ours", "go"), ("go", "ours"), ("ours", "ours")]
SIZE = 1_000_000  # bytes, each way


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_streams(overlay: Overlay, near_kind: Kind, far_kind: Kind) -> None:
    """Both sides write a lot before they read, hash what they read, and see the end."""
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    results: dict[str, dict[str, Any]] = {}
    exchange = f"""
        import hashlib
        sent = os.urandom({SIZE})
        writer = threading.Thread(target=conn.write, args=(sent,))
        writer.start()
        received = conn.read_full({SIZE})
        writer.join()
        results["sent"] = hashlib.sha256(sent).hexdigest()
        results["received"] = hashlib.sha256(received).hexdigest()
    """
    accept = f"""
        listener = driver.listen(5000)
        print("listening", file=sys.stderr, flush=True)
        conn = listener.accept()
        {exchange}
        results["after the end"] = error(conn.read, 1)
        conn.close()
    """
    dial = f"""
        conn = driver.dial(sys.argv[2] + ":5000", 20.0)
        {exchange}
        conn.close()
        results["closed port"] = error(driver.dial, sys.argv[2] + ":4999", 20.0)
    """

    async def run(name: str, node: OverlayNode, script: str, *arguments: str) -> None:
        results[name] = await run_sdk(node.home.socket, script, *arguments)

    ports = (await far.info())["ports"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "far", far, accept)
        await until_bound(far, ports + 1)
        nursery.start_soon(run, "near", near, dial, far.address)
    assert results["near"]["received"] == results["far"]["sent"]
    assert results["far"]["received"] == results["near"]["sent"]
    assert results["far"]["after the end"] == "EOF"
    assert "connection refused" in results["near"]["closed port"]


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_datagrams(overlay: Overlay, near_kind: Kind, far_kind: Kind) -> None:
    """Each side answers the other; sent again until it was received, for datagrams may be lost."""
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    results: dict[str, dict[str, Any]] = {}
    ask = """
        heard = threading.Event()
        def ask():
            while not heard.is_set():
                driver.send_to(sys.argv[2] + ":6000", b"how are you?")
                heard.wait(0.2)
        threading.Thread(target=ask).start()
        results["got"] = driver.recv_from()
        heard.set()
    """
    answer = """
        results["got"] = driver.recv_from()
        driver.send_to(sys.argv[2] + ":6001", b"fine")
    """

    async def run(name: str, node: OverlayNode, script: str, *arguments: str) -> None:
        results[name] = await run_sdk(node.home.socket, script, *arguments)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "far", far, answer, near.address)
        nursery.start_soon(run, "near", near, ask, far.address)
    asked, answered = results["far"]["got"], results["near"]["got"]
    assert (asked["src_addr"], asked["dst_port"], asked["data"]) == (near.address, 6000, "aG93IGFyZSB5b3U/")
    assert (answered["src_addr"], answered["dst_port"], answered["data"]) == (far.address, 6001, "ZmluZQ==")


@pytest.mark.parametrize("broker_is", ["near", "far"])
@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_events(overlay: Overlay, near_kind: Kind, far_kind: Kind, broker_is: str) -> None:
    """The far node's client publishes, the near one's has subscribed, at the event stream of either node."""
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    broker = {"near": near, "far": far}[broker_is]
    found: list[dict[str, Any]] = []

    async def subscribe(topic: str) -> None:
        script = """
            results["events"] = events = []
            for topic, data in driver.subscribe_event(sys.argv[2], sys.argv[3]):
                events.append([topic, data.hex()])
                if len(events) == 2:
                    break
        """
        found.append(await run_sdk(near.home.socket, script, broker.address, topic))

    publish = """
        results["answer"] = driver.publish_event(sys.argv[2], "other", b"not for everybody")
        results["answer"] = driver.publish_event(sys.argv[2], "weather/now", bytes(range(256)))
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe, "weather/now")
        while not found:  # who subscribes is told nothing; so repeat until it was early enough
            results = await run_sdk(far.home.socket, publish, broker.address)
    assert results["answer"]
    assert found[0]["events"] == [["weather/now", bytes(range(256)).hex()]] * 2


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_messages_and_files(overlay: Overlay, near_kind: Kind, far_kind: Kind, tmp_path: Path) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    path = tmp_path / "sdk.bin"
    path.write_bytes(os.urandom(50_000))
    script = """
        target, path = sys.argv[2:]
        results["message"] = driver.send_message(target, b"from the SDK", "text")
        results["file"] = driver.send_file(target, path)
        with driver.dial(target + ":7") as conn:
            conn.write(b"echo")
            results["echo"] = conn.read(4)
    """
    results = await run_sdk(near.home.socket, script, far.address, str(path))
    assert results["echo"] == "echo"
    (message,) = [json.loads(item.read_bytes()) for item in (far.home.root / ".pilot" / "inbox").glob("*.json")]
    assert (message["data"], message["from"]) == ("from the SDK", near.address)
    stored = [item.read_bytes() for item in (far.home.root / ".pilot" / "received").iterdir() if item.is_file()]
    assert stored == [path.read_bytes()]


async def test_a_stream_that_breaks_is_an_end_to_the_sdk(overlay: Overlay) -> None:
    """Our daemon pushes something besides, which the SDK does not know: it goes on as if nothing had come."""
    near, far = await overlay.start("ours"), await overlay.start("ours")
    results: list[dict[str, Any]] = []
    script = """
        conn = driver.dial(sys.argv[2] + ":7", 20.0)
        conn.write(b"hello")
        results["echo"] = conn.read(5)
        print(driver.set_tags(["waiting"]), file=sys.stderr)
        results["end"] = error(conn.read, 5)
        results["info"] = driver.info()["node_id"]
        with driver.dial(sys.argv[2] + ":7", 20.0) as conn:
            conn.write(b"again")
            results["again"] = conn.read(5)
    """

    async def run() -> None:
        results.append(await run_sdk(near.home.socket, script, far.address))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(60):
            while (await overlay.rendezvous.ask(type="lookup", node_id=near.node_id)).get("tags") != ["waiting"]:  # noqa: ASYNC110 - another process sets no event of ours
                await trio.sleep(0.05)
        await far.stop(signal.SIGKILL)
        await far.start()
        async with far.driver() as driver:
            await dial_until_answered(driver, near)
    assert (results[0]["echo"], results[0]["end"], results[0]["again"]) == ("hello", "EOF", "again")
    assert results[0]["info"] == near.node_id


async def until_bound(node: OverlayNode, count: int) -> None:
    """Wait until so many ports are bound; no daemon announces it."""
    with trio.fail_after(60):
        async with node.driver() as driver:
            while (await driver.info()).ports < count:  # noqa: ASYNC110 - another process sets no event of ours
                await trio.sleep(0.05)
