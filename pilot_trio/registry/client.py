"""The registry client: calls over a small pool of connections, with retries and deadlines (`spec/registry.md` §2.5).

Theory of operation. A call takes a connection: the one idle for longest, or a new one while fewer than the pool's size are
in use. It sends, reads one answer and gives the connection back. Whatever interrupts it between sending and reading
(cancellation, a deadline, bytes that are no answer) closes the connection instead, so that no later call can read an
answer that was not its own.

A lost answer is asked for once more on a new connection: every request may reach the registry twice, which the protocol
demands of it. A dial that fails is repeated for a few seconds, to outlast a restart of the registry; once that was in vain,
further calls try once and fail promptly, until one gets through. Trying for ever is for `daemon.enrolment`, not for here.

The client has no tasks. `call` runs in its caller's task and nothing else waits for the registry.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from pilot_trio.errors import DecodeError, LocalProtocolError, RegistryError, RegistryUnavailable
from pilot_trio.net.network import Endpoint, Network
from pilot_trio.registry.backoff import Backoff, EarlyCloseGuard
from pilot_trio.registry.connection import Connection, ConnectionLost, DialFailed, dial
from pilot_trio.registry.tls import TLSPolicy
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, encode_frame
from pilot_trio.wire.registry import Message, decode_message

RESPONSE_TIMEOUT: Final = 30.0  # seconds from sending a request to its whole answer; protocol, `spec/registry.md` §2.5
CALL_TIMEOUT: Final = 60.0  # seconds for a call without a deadline of its own: waiting, dialling and one retry included
INTERACTIVE_TIMEOUT: Final = 8.0  # seconds for heartbeats, and for what a client waits for; protocol, §2.5
DIAL_ATTEMPTS: Final = 5  # dials before a call gives up; protocol, `spec/registry.md` §2.5
DIAL_DELAY_FIRST: Final = 0.5  # seconds between the first two dials, doubling; protocol, `spec/registry.md` §2.5
DIAL_DELAY_MAX: Final = 4.0  # seconds; longest such wait; protocol, `spec/registry.md` §2.5
WAITING_MAX: Final = 1024  # calls waiting for a connection; one busy IPC client's worth, more would only time out
IDLE_MAX: Final = 240.0  # seconds; registries close after 300, and an idle connection may be lost unnoticed on the way
CONNECTIONS: Final = 4  # protocol, `spec/registry.md` §2.5

_CLOSED: Final = "registry client closed"
_TIMED_OUT: Final = "call timed out, connection likely half-open"


@attrs.frozen
class RegistryStatistics:
    """Counters since the start, and what is open now."""

    calls: int
    errors: int  # answers that said no
    unavailable: int  # calls without an answer
    retries: int  # answers lost and asked for again
    dials: int
    open: int  # connections
    waiting: int  # calls waiting for a connection


class RegistryClient:
    """Calls to one registry.

    Args:
      network: how to reach it.
      endpoint: where it listens; the host may be a name.
      tls: how to recognise it; None for plaintext.
      connections: how many requests may be under way at once.
      rng: source of jitter.
      on_reachable: called with True when an answer arrives, with False when a call got none.
    """

    def __init__(
        self,
        network: Network,
        endpoint: Endpoint,
        *,
        tls: TLSPolicy | None = None,
        connections: int = CONNECTIONS,
        rng: random.Random | None = None,
        on_reachable: Callable[[bool], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._network = network
        self._tls = tls
        self._rng = rng or random.Random()
        self._guard = EarlyCloseGuard(self._rng)
        self._on_reachable = on_reachable
        self._slots = trio.CapacityLimiter(connections)
        self._waiting = 0
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._down = False  # the last series of dials was in vain
        self._closed = False
        self._calls = self._errors = self._unavailable = self._retries = self._dials = 0

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        """Send the request `type_` with these fields and return the answer.

        Cancelled at any moment it leaves the client as it was, less one connection. `timeout` (seconds, default 60) covers
        everything, waiting for a free connection included.

        Raises:
          RegistryUnavailable: there was no answer; the request may have been carried out all the same.
          RegistryError: the registry refused.
        """
        frame = _encode_request(type_, fields)
        self._calls += 1
        try:
            with trio.move_on_after(CALL_TIMEOUT if timeout is None else timeout):
                answer = _checked(type_, await self._transact(type_, frame))
                self._report(reachable=True)
                return answer
            # The others were idle on the same path; each would cost its next user the same wait.
            await self._close_idle()
            raise RegistryUnavailable(_TIMED_OUT, type_)
        except RegistryUnavailable:
            self._unavailable += 1
            self._report(reachable=False)
            raise
        except RegistryError:
            self._errors += 1
            self._report(reachable=True)
            raise

    async def renew(self) -> None:
        """Close connections that are not in use: they may lead nowhere since the machine has moved. The next call dials."""
        await self._close_idle()

    async def aclose(self) -> None:
        """Close every connection; calls under way fail with `RegistryUnavailable`. Does not wait for them; idempotent."""
        self._closed = True
        for connection in [*self._busy, *self._idle]:
            await connection.close()
        self._idle.clear()

    def statistics(self) -> RegistryStatistics:
        """Return the counters."""
        return RegistryStatistics(
            calls=self._calls,
            errors=self._errors,
            unavailable=self._unavailable,
            retries=self._retries,
            dials=self._dials,
            open=len(self._busy) + len(self._idle),
            waiting=self._waiting,
        )

    async def _transact(self, type_: str, frame: bytes) -> Message:
        await self._acquire_slot(type_)
        try:
            return await self._exchange_with_retry(type_, frame)
        except DecodeError as exc:
            raise RegistryUnavailable(f"malformed response: {exc}", type_) from exc
        finally:
            self._slots.release()

    async def _acquire_slot(self, type_: str) -> None:
        try:
            self._slots.acquire_nowait()
            return
        except trio.WouldBlock:
            pass
        if self._waiting >= WAITING_MAX:
            raise RegistryUnavailable(f"{WAITING_MAX} requests are waiting already", type_)
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    async def _exchange_with_retry(self, type_: str, frame: bytes) -> Message:
        try:
            connection = await self._take_idle() or await self._dial()
        except DialFailed as exc:
            raise RegistryUnavailable(str(exc), type_) from exc
        try:
            return await self._exchange(type_, connection, frame)
        except ConnectionLost as exc:
            first_failure = str(exc)
        self._retries += 1
        try:
            return await self._exchange(type_, await self._dial(), frame)
        except DialFailed as exc:
            text = f"send failed and reconnect failed: {first_failure} (reconnect: {exc})"
            raise RegistryUnavailable(text, type_) from exc
        except ConnectionLost as exc:
            text = f"{exc} (retried after reconnect; first failure: {first_failure})"
            raise RegistryUnavailable(text, type_) from exc

    async def _exchange(self, type_: str, connection: Connection, frame: bytes) -> Message:
        """Exchange on this connection; keep it for the next call only if the exchange was completed cleanly."""
        self._busy.add(connection)
        usable = False
        try:
            with trio.move_on_after(RESPONSE_TIMEOUT):
                answer = decode_message(await connection.exchange(frame))
                _check_in_step(type_, answer)
                usable = connection.in_step and not self._closed
                self._guard.on_answer(age=connection.age)
                return answer
            raise RegistryUnavailable("recv: i/o timeout", type_)
        except ConnectionLost:
            self._guard.on_close(age=connection.age, now=trio.current_time())
            raise
        finally:
            self._busy.discard(connection)
            if usable:
                self._idle.append(connection)
            else:
                await connection.close()

    async def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.popleft()
            if trio.current_time() - connection.used_at < IDLE_MAX:
                return connection
            await connection.close()
        return None

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.popleft().close()

    async def _dial(self) -> Connection:
        """Open a connection, patiently unless the last attempt to be patient was in vain."""
        self._check_open()
        await trio.sleep(self._guard.delay(trio.current_time()))
        backoff = Backoff(DIAL_DELAY_FIRST, DIAL_DELAY_MAX, self._rng)
        attempts = 1 if self._down else DIAL_ATTEMPTS
        for remaining in reversed(range(attempts)):
            self._check_open()
            self._dials += 1
            try:
                connection = await dial(self._network, self.endpoint, self._tls)
            except DialFailed as exc:
                if exc.final:
                    raise
                if not remaining:
                    self._down = True
                    if attempts == 1:
                        raise
                    raise DialFailed(f"reconnect failed after {attempts} attempts: {exc}") from exc
                await trio.sleep(backoff.next_delay())
            else:
                self._down = False
                try:
                    self._check_open()
                except DialFailed:  # closed meanwhile, and nobody else knows this connection
                    await connection.close()
                    raise
                return connection
        raise AssertionError("the last attempt either succeeds or raises")

    def _check_open(self) -> None:
        if self._closed:
            raise DialFailed(_CLOSED, final=True)

    def _report(self, *, reachable: bool) -> None:
        if self._on_reachable is not None:
            self._on_reachable(reachable)


def _encode_request(type_: str, fields: dict[str, Any]) -> bytes:
    body = canonical_json.dumps({"type": type_, **fields})
    if len(body) > REGISTRY_FRAME_MAX:
        raise LocalProtocolError(f"{type_} request of {len(body)} bytes exceeds the limit of {REGISTRY_FRAME_MAX}")
    return encode_frame(body)


def _check_in_step(type_: str, answer: Message) -> None:
    """Raise `DecodeError` if this is the success of another request: the connection has lost count of its answers."""
    kind = answer.get("type")
    if isinstance(kind, str) and kind.endswith("_ok") and kind != f"{type_}_ok":
        raise DecodeError(f"{kind} in answer to {type_}")


def _checked(type_: str, answer: Message) -> Message:
    """Tell success from failure (`spec/registry.md` §2.1)."""
    if "error" in answer:
        error = answer["error"]
        raise RegistryError(error if isinstance(error, str) else json.dumps(error), type_)
    if answer and "type" not in answer:
        raise RegistryError('malformed response (missing "type" field)', type_)
    return answer
