"""Which beacons there are: what the registry lists, or listed last, for a start without it (`spec/tunnel.md` §13.5)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from pilot_trio.daemon.interfaces import Registry
from pilot_trio.errors import RegistryError
from pilot_trio.net import files
from pilot_trio.net.addresses import is_literal, is_public
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.wire.times import parse_rfc3339, rfc3339

BEACONS_MAX: Final = 64  # beacons to choose from; a registry that lists more is not worth following
CACHE_TIME: Final = 3600.0  # seconds for which a stored list serves; protocol, `spec/tunnel.md` §13.5
SAVE_INTERVAL: Final = 900.0  # seconds after which a list that has not changed is stored again, to keep it young

_log = logging.getLogger("pilot_trio.daemon")


class BeaconList:
    """The registry's list.

    Args:
      registry: whom to ask.
      path: `beacons.json`; None keeps nothing.
      wall_time: Unix seconds.
    """

    def __init__(self, registry: Registry, path: Path | None, wall_time: Callable[[], float]) -> None:
        self._registry = registry
        self._path = path
        self._wall_time = wall_time
        self._asked = False  # the registry, in this run
        self._saved: tuple[float, list[Endpoint]] = (0.0, [])

    async def ask(self) -> list[Endpoint] | None:
        """Return what the registry lists, sorted; None if it gives no answer: then what was chosen stays.

        The first time the list of an earlier run stands in for an answer, if it is not too old.
        """
        first, self._asked = not self._asked, True
        try:
            answer = await self._registry.call("beacon_list")
        except RegistryError as exc:
            _log.debug("beacon list failed", extra={"kv": {"error": str(exc)}})
            return await self._load() if first else None
        rows = answer.get("beacons")
        found = usable(row.get("addr") for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict))
        await self._save(found)
        return found

    async def _load(self) -> list[Endpoint] | None:
        try:
            record = json.loads((await files.load(self._path) if self._path else None) or b"{}")
            saved_at, addrs = parse_rfc3339(record.get("saved_at", "")), record.get("addrs")
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            _log.warning("cannot read beacons", extra={"kv": {"path": str(self._path), "error": str(exc)}})
            return None
        if saved_at is None or not isinstance(addrs, list) or not 0 <= self._wall_time() - saved_at < CACHE_TIME:
            return None
        return usable(addrs)

    async def _save(self, beacons: list[Endpoint]) -> None:
        now = self._wall_time()
        if self._path is None or not beacons:
            return
        if beacons == self._saved[1] and now - self._saved[0] < SAVE_INTERVAL:
            return
        self._saved = (now, beacons)
        record = {"saved_at": rfc3339(now), "addrs": [str(beacon) for beacon in beacons]}
        try:
            await files.save(self._path, json.dumps(record).encode())
        except OSError as exc:
            _log.warning("cannot save beacons", extra={"kv": {"path": str(self._path), "error": str(exc)}})


def usable(addrs: Iterable[Any]) -> list[Endpoint]:
    """Return what is usable of a list, sorted: literals that are not public are of no use to us."""
    found: set[Endpoint] = set()
    for text in addrs:
        try:
            endpoint = Endpoint.parse(text) if isinstance(text, str) else None
        except ValueError:
            continue
        if endpoint is not None and endpoint.host and (is_public(endpoint.host) or not is_literal(endpoint.host)):
            found.add(endpoint)
    return sorted(found, key=str)[:BEACONS_MAX]
