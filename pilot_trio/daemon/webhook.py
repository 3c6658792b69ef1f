"""Deliver the bus's events to an HTTP endpoint: one at a time, in order, never in anybody's way (`spec/services.md` §7.2).

Publishing puts an event into a bounded queue; one task posts. An endpoint that is dead costs its events, which are
counted, and nothing else: after `BREAKER_FAILURES` events in a row a circuit breaker discards what comes for a while.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.errors import CommandError, DecodeError
from pilot_trio.net import files
from pilot_trio.proto.webhook_url import check_webhook_url
from pilot_trio.wire.times import rfc3339_nano

log = logging.getLogger("pilot_trio.daemon.webhook")

REQUEST_TIMEOUT: Final = 5.0  # seconds for one POST; protocol §7.2
QUEUE_EVENTS: Final = 1024  # events waiting; the newest is dropped when full, protocol §7.2
RETRY_PAUSES: Final = (1.0, 2.0)  # seconds between the three attempts; protocol §7.2
BREAKER_FAILURES: Final = 5  # events failed in a row that open the breaker; protocol §7.2
BREAKER_PAUSE: Final = 30.0  # seconds during which events are discarded; protocol §7.2
CHANGE_DRAIN: Final = 5.0  # seconds after a change of URL in which the old one still gets its events; protocol §7.2

Post = Callable[[str, bytes, dict[str, str]], Awaitable[int]]
"""Send one POST and return the status code; raise `OSError` if that fails. The caller sets the deadline."""


def check_url(url: str) -> None:
    """Refuse what a webhook must not point at; raise `CommandError` with the protocol's text."""
    try:
        check_webhook_url(url)
    except DecodeError as exc:
        raise CommandError(str(exc)) from exc


@attrs.define
class Breaker:
    """Stops attempts at an endpoint that does not answer. Pure: time comes in."""

    failures: int = 0
    open_until: float = float("-inf")

    def allows(self, now: float) -> bool:
        """Say whether an event may be tried; after the pause, one is."""
        return now >= self.open_until

    def succeeded(self) -> None:
        """Note a delivered event."""
        self.failures = 0

    def failed(self, now: float) -> None:
        """Note an event that all attempts failed to deliver."""
        self.failures += 1
        if self.failures >= BREAKER_FAILURES:
            self.open_until = now + BREAKER_PAUSE


class Webhook:
    """The delivery task and its queue. `dropped` and `circuit_skips` are what health and info report."""

    def __init__(
        self,
        events: EventBus,
        *,
        node_id: Callable[[], int],
        url: str = "",
        secret: str = "",
        post: Post | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.url = ""
        self.dropped = 0
        self.circuit_skips = 0
        self._events = events
        self._node_id = node_id
        self._secret = secret.encode()
        self._post = post or _http_post
        self._now_ns = now_ns
        self._next_id = 1
        self._changed_at = float("-inf")
        self._breaker = Breaker()
        self._send, self._receive = trio.open_memory_channel[tuple[str, bytes]](QUEUE_EVENTS)
        self._unsubscribe: Callable[[], None] | None = None
        self.drained: Final = trio.Event()
        """Set once `close` was called and everything that was queued has been delivered or given up."""
        if url:
            self.set_url(url)

    def set_url(self, url: str) -> None:
        """Deliver to `url` from the next event on; `""` stops. Numbering starts anew, and the breaker closes.

        Raises:
          CommandError: the URL may not be used; nothing changed.
        """
        if url:
            check_url(url)
        if url != self.url:
            self.url, self._next_id, self._breaker = url, 1, Breaker()
            self._changed_at = trio.current_time()
        if url and self._unsubscribe is None:
            self._unsubscribe = self._events.subscribe(self._enqueue)
        elif not url and self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    async def load(self, configured: str, stored: Path) -> None:
        """Use the configured URL, or the one that a client has left in a file; one that may not be used is logged."""
        url = configured
        try:
            if not url:
                url = (await files.load(stored) or b"").decode("utf-8", "surrogateescape").strip()
            self.set_url(url)
        except (CommandError, OSError) as exc:
            log.warning("webhook not used", extra={"kv": {"url": url, "error": str(exc)}})

    def _enqueue(self, event: Event) -> None:
        body: dict[str, Any] = {"event_id": self._next_id, "event": event.topic, "node_id": self._node_id()}
        body["timestamp"] = rfc3339_nano(self._now_ns())
        if event.data is not None:
            body["data"] = dict(sorted(event.data.items()))
        self._next_id += 1
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        try:
            self._send.send_nowait((self.url, raw))
        except (trio.WouldBlock, trio.ClosedResourceError):
            self.dropped += 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled, or until `close` was called and the queue is empty."""
        task_status.started()
        async for url, body in self._receive:
            if url != self.url and trio.current_time() > self._changed_at + CHANGE_DRAIN:
                continue
            if not self._breaker.allows(trio.current_time()):
                self.circuit_skips += 1
                continue
            if await self._deliver(url, body):
                self._breaker.succeeded()
            else:
                self._breaker.failed(trio.current_time())
        self.drained.set()

    def close(self) -> None:
        """Take no more events; `run` returns once the queue is empty. How long that may take is the caller's business."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._send.close()

    async def _deliver(self, url: str, body: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers["X-Pilot-Signature-256"] = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        for pause in (*RETRY_PAUSES, None):
            status = await self._attempt(url, body, headers)
            if status is not None and status < 500:
                if status >= 400:
                    log.warning("webhook refused event", extra={"kv": {"url": url, "status": status}})
                return True  # a 4xx is final and says nothing about the endpoint's health
            if pause is not None:
                await trio.sleep(pause)
        log.warning("webhook delivery failed", extra={"kv": {"url": url, "attempts": len(RETRY_PAUSES) + 1}})
        return False

    async def _attempt(self, url: str, body: bytes, headers: dict[str, str]) -> int | None:
        if self._post is _http_post:
            await _load_client()  # before the deadline: it is no time of the endpoint's
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                return await self._post(url, body, headers)
        except (OSError, trio.TooSlowError) as exc:
            log.debug("webhook attempt failed", extra={"kv": {"url": url, "error": repr(exc)}})
        except Exception:
            # The border of one endpoint: whatever its URL or its answer brings about must not end the node.
            log.exception("webhook attempt failed", extra={"kv": {"url": url}})
        return None


async def _load_client() -> None:
    """Import the HTTP client at its first use, and off the loop: that takes up to a second.

    Most daemons have no webhook, and the client would cost them several MiB.
    """
    if "httpx" not in sys.modules:
        await trio.to_thread.run_sync(importlib.import_module, "httpx", abandon_on_cancel=True)


async def _http_post(url: str, body: bytes, headers: dict[str, str]) -> int:
    import httpx

    try:
        async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as client:
            return (await client.post(url, content=body, headers=headers, timeout=None)).status_code
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:  # the last: a host name that cannot be looked up
        raise OSError(str(exc)) from exc
