from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.daemon import webhook as module
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.webhook import Webhook, check_url
from pilot_trio.errors import CommandError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "services.json").read_text())["webhook"]
NOW_NS = 1_795_459_848_050_000_000


class Endpoint:
    """Stands in for the HTTP endpoint: records what arrives, answers as told."""

    def __init__(self) -> None:
        self.answers: list[int | Exception] = []  # used up from the front; then 200
        self.received: list[tuple[float, str, dict[str, Any], dict[str, str]]] = []
        self.hang = False

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        self.received.append((trio.current_time(), url, json.loads(body), headers))
        if self.hang:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def ids(self) -> list[int]:
        return [body["event_id"] for _, _, body, _ in self.received]


@asynccontextmanager
async def running(
    endpoint: Endpoint, url: str = "http://hook/", secret: str = ""
) -> AsyncIterator[tuple[EventBus, Webhook]]:
    bus = EventBus()
    hook = Webhook(bus, node_id=lambda: 7, url=url, secret=secret, post=endpoint.post, now_ns=lambda: NOW_NS)
    async with trio.open_nursery() as nursery:
        await nursery.start(hook.run)
        yield bus, hook
        nursery.cancel_scope.cancel()


async def test_events_arrive_in_order_and_in_the_recorded_shape() -> None:
    endpoint = Endpoint()
    async with running(endpoint, secret="s3cret") as (bus, _):
        bus.publish("tunnel.peer_added", {"peer_node_id": 3, "a": 1})
        bus.publish("node.deregistered")
        await trio.testing.wait_all_tasks_blocked()
    (_, url, first, headers), (_, _, second, _) = endpoint.received
    assert url == "http://hook/"
    assert list(first) == ["event_id", "event", "node_id", "timestamp", "data"]
    assert list(first["data"]) == ["a", "peer_node_id"]
    assert first["timestamp"] == "2026-11-23T18:50:48.05Z"
    assert second == {"event_id": 2, "event": "node.deregistered", "node_id": 7, "timestamp": first["timestamp"]}
    body = json.dumps(first, separators=(",", ":")).encode()
    assert headers["X-Pilot-Signature-256"] == hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()


def test_the_recorded_signature_verifies() -> None:
    recorded = VECTORS["hmac"]
    digest = hmac.new(recorded["secret"].encode(), recorded["body"].encode(), hashlib.sha256).hexdigest()
    assert digest == recorded["value"]


async def test_a_failing_endpoint_gets_three_attempts_a_second_and_two_apart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    endpoint = Endpoint()
    endpoint.answers = [500, OSError("refused"), 204]
    started = trio.current_time()
    async with running(endpoint) as (bus, hook):
        bus.publish("a")
        bus.publish("b")
        await trio.sleep(10)
    assert endpoint.ids == [1, 1, 1, 2]
    assert [at - started for at, *_ in endpoint.received] == pytest.approx([0, 1, 3, 3])
    assert (hook.dropped, hook.circuit_skips) == (0, 0)


async def test_an_endpoint_that_brings_a_defect_to_light_costs_its_event_and_never_the_node(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint()
    endpoint.answers = [KeyError("defect")] * 3
    async with running(endpoint) as (bus, _):
        bus.publish("a")
        bus.publish("b")
        await trio.sleep(10)
    assert endpoint.ids == [1, 1, 1, 2]
    assert "webhook attempt failed" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://a..b/", "http://.a/", f"http://{'a' * 300}/", "http://xn--a/", "http://☃☃.☃/", "http://[v1.a]/"],
)
async def test_a_url_that_nobody_can_post_to_is_an_error_like_others(url: str) -> None:
    check_url(url)
    with pytest.raises(OSError, match=r".+"):
        await module._http_post(url, b"{}", {})


async def test_a_refusal_is_final(autojump_clock: trio.testing.MockClock) -> None:
    endpoint = Endpoint()
    endpoint.answers = [404]
    async with running(endpoint) as (bus, _):
        bus.publish("a")
        bus.publish("b")
        await trio.sleep(10)
    assert endpoint.ids == [1, 2]


async def test_a_hanging_endpoint_is_given_up_after_its_timeout(autojump_clock: trio.testing.MockClock) -> None:
    endpoint = Endpoint()
    endpoint.hang = True
    started = trio.current_time()
    async with running(endpoint) as (bus, _):
        bus.publish("a")
        await trio.sleep(100)
    assert [at - started for at, *_ in endpoint.received] == pytest.approx([0, 6, 13])


async def test_five_lost_events_open_the_breaker_for_thirty_seconds(autojump_clock: trio.testing.MockClock) -> None:
    endpoint = Endpoint()
    endpoint.answers = [OSError("refused")] * 15
    async with running(endpoint) as (bus, hook):
        for _ in range(7):
            bus.publish("a")
        await trio.sleep(5 * 3 + 1)
        assert set(endpoint.ids) == {1, 2, 3, 4, 5}
        assert hook.circuit_skips == 2
        await trio.sleep(module.BREAKER_PAUSE)
        bus.publish("back")
        await trio.sleep(1)
    assert endpoint.ids[-1] == 8
    assert hook.circuit_skips == 2


async def test_a_full_queue_drops_the_newest_and_counts(mock_clock: trio.testing.MockClock) -> None:
    endpoint = Endpoint()
    endpoint.hang = True
    async with running(endpoint) as (bus, hook):
        bus.publish("taken")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(module.QUEUE_EVENTS):
            bus.publish("queued")
        assert hook.dropped == 0
        bus.publish("one too many")
        assert hook.dropped == 1


async def test_a_new_url_restarts_the_numbering_and_the_old_one_gets_its_events_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    endpoint = Endpoint()
    async with running(endpoint) as (bus, hook):
        bus.publish("old")
        hook.set_url("http://new/")
        bus.publish("new")
        await trio.sleep(1)
        hook.set_url("")
        bus.publish("nobody listens")
        await trio.sleep(1)
    assert [(url, body["event_id"]) for _, url, body, _ in endpoint.received] == [
        ("http://hook/", 1),
        ("http://new/", 1),
    ]


@pytest.mark.parametrize(("takes", "heard"), [(2.0, [1, 2, 3]), (3.0, [1, 2])])
async def test_an_endpoint_that_was_replaced_is_told_what_it_missed_for_five_seconds(
    autojump_clock: trio.testing.MockClock, takes: float, heard: list[int]
) -> None:
    endpoint = Endpoint()
    seen: list[int] = []

    async def post(url: str, body: bytes, headers: dict[str, str]) -> int:
        seen.append(json.loads(body)["event_id"])
        await trio.sleep(takes)
        return 200

    endpoint.post = post  # type: ignore[method-assign]
    async with running(endpoint) as (bus, hook):
        for topic in ("slow", "waits", "waits longer"):
            bus.publish(topic)
        hook.set_url("http://new/")
        await trio.sleep(10)
    assert seen == heard


async def test_closing_delivers_what_is_queued_and_ends_the_task() -> None:
    endpoint = Endpoint()
    bus = EventBus()
    hook = Webhook(bus, node_id=lambda: 0, url="http://hook/", post=endpoint.post)
    bus.publish("a")
    bus.publish("b")
    hook.close()
    bus.publish("too late")
    with trio.fail_after(5):
        await hook.run()
    assert endpoint.ids == [1, 2]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://x", 'URL must use http or https scheme, got "ftp"'),
        ("x", 'URL must use http or https scheme, got ""'),
        ("http://", "URL must have a host"),
        ("http://169.254.169.254/x", "URL cannot target link-local address 169.254.169.254"),
        ("http://[fe80::1]/", "URL cannot target link-local address fe80::1"),
        ("https://metadata.google.internal/", "URL cannot target cloud metadata endpoint metadata.google.internal"),
        ("http://host:99999/", "invalid URL: "),
        ("http://[::1/", "invalid URL: "),
    ],
)
def test_urls_that_a_webhook_must_not_use_are_refused(url: str, text: str) -> None:
    with pytest.raises(CommandError) as caught:
        check_url(url)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/x", "https://10.0.0.1/", "http://example.com"])
def test_private_and_public_urls_are_allowed(url: str) -> None:
    check_url(url)


async def test_loading_the_client_is_no_time_of_the_endpoint(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load_slowly() -> None:
        await trio.sleep(2 * module.REQUEST_TIMEOUT)

    endpoint, bus = Endpoint(), EventBus()
    monkeypatch.setattr(module, "_load_client", load_slowly)
    monkeypatch.setattr(module, "_http_post", endpoint.post)
    hook = Webhook(bus, node_id=lambda: 1, url="http://hook/")
    async with trio.open_nursery() as nursery:
        await nursery.start(hook.run)
        bus.publish("a")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert endpoint.ids == [1]


async def test_the_client_is_loaded_off_the_loop_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.delitem(sys.modules, "httpx")
    await module._load_client()
    loaded = sys.modules["httpx"]
    assert loaded is not httpx
    await module._load_client()
    assert sys.modules["httpx"] is loaded


async def test_the_real_client_posts_over_http() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while b'"event":"real"' not in received:
                received += await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            done.set()

    done = trio.Event()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        bus = EventBus()
        hook = Webhook(bus, node_id=lambda: 1, url=f"http://127.0.0.1:{port}/hook")
        await nursery.start(hook.run)
        bus.publish("real")
        with trio.fail_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
