"""Notices that this machine's own address has changed (`spec/tunnel.md` §12). Pure.

Two inputs say so: the address that the system would send from, looked at often, and the endpoint in the beacon's answers,
which sees through NATs but is a stranger's word: it counts when two answers in a row agree. Each input has patience of its
own, so that a link that flaps, or a beacon that lies, costs little.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Final, NamedTuple

import attrs

RECOVERY_GAP: Final = 10.0  # seconds between two recoveries, whatever the inputs; protocol, `spec/tunnel.md` §12
LOCAL_BACKOFF: Final = (10.0, 120.0)  # seconds, first and last, between changes of the local address; protocol §12
LOCAL_QUIET: Final = 600.0  # seconds without a change after which patience begins anew; protocol §12
OBSERVED_BACKOFF: Final = (60.0, 3600.0)  # seconds, likewise for the observed address; protocol §12
OBSERVED_QUIET: Final = 7200.0  # seconds, likewise; protocol §12
CONFIRM_GAP: Final = 30.0  # seconds between two questions whether a new observed endpoint is true; protocol §12


class Reason(Enum):
    """Which input has changed."""

    LOCAL = "local_address"
    OBSERVED = "observed_endpoint"


class Change(NamedTuple):
    """The own address has changed, and it is time to do something about it."""

    reason: Reason
    previous: str
    current: str


@attrs.define
class _Input:
    """One source of addresses: what it said when we last acted, and when it may make us act again."""

    first: float
    last: float
    quiet: float
    acted_on: str = ""
    not_before: float = -inf
    changed_at: float = -inf
    backoff: float = 0.0

    def changed(self, now: float) -> None:
        if now - self.changed_at >= self.quiet:
            self.backoff = 0.0
        self.backoff = min(max(self.first, 2 * self.backoff), self.last)
        self.changed_at = now
        self.not_before = now + self.backoff


@attrs.define(eq=False)
class AddressWatch:
    """Judges both inputs. Times are seconds of any one clock."""

    _local: _Input = attrs.field(factory=lambda: _Input(*LOCAL_BACKOFF, LOCAL_QUIET), init=False)
    _observed: _Input = attrs.field(factory=lambda: _Input(*OBSERVED_BACKOFF, OBSERVED_QUIET), init=False)
    _candidate: str = attrs.field(default="", init=False)  # observed once, not confirmed
    _confirmed_at: float = attrs.field(default=-inf, init=False)
    _recovered_at: float = attrs.field(default=-inf, init=False)

    def restart(self) -> None:
        """Forget what was seen: another beacon is in use, which may see us elsewhere."""
        self._local.acted_on = self._observed.acted_on = self._candidate = ""

    def local(self, host: str, now: float) -> Change | None:
        """Take the address that the system sends from; "" if there is no way out at the moment."""
        return self._judge(self._local, Reason.LOCAL, host, now) if host else None

    def observed(self, endpoint: str, now: float) -> Change | None:
        """Take the endpoint in a beacon's answer. Its port counts too: a router that restarted has the same address."""
        if endpoint == self._observed.acted_on or not self._observed.acted_on:
            self._candidate = ""
            self._observed.acted_on = endpoint
            return None
        if endpoint != self._candidate:
            self._candidate = endpoint
            return None
        return self._judge(self._observed, Reason.OBSERVED, endpoint, now)

    def wants_confirmation(self, now: float) -> bool:
        """Say whether to ask the beacon once more, because it has just named a new address."""
        if not self._candidate or now - self._confirmed_at < CONFIRM_GAP:
            return False
        self._confirmed_at = now
        return True

    def _judge(self, source: _Input, reason: Reason, host: str, now: float) -> Change | None:
        if not source.acted_on:
            source.acted_on = host
        if host == source.acted_on or now < source.not_before or now - self._recovered_at < RECOVERY_GAP:
            return None  # a change that comes too soon is seen again, as long as it lasts
        change = Change(reason, source.acted_on, host)
        source.acted_on = host
        source.changed(now)
        self._recovered_at = now
        self._candidate = ""
        return change
