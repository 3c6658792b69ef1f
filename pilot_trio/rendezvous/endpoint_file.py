"""Keeps the beacon's endpoint table over a restart (`spec/tunnel.md` §14.1).

Nodes tell the beacon where they are once a minute. Without this file a restarted beacon could neither relay nor punch
until then, and relayed streams would stand still for as long. It is a cache: a file that is missing, damaged or late costs
that minute, no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from pilot_trio.errors import LocalProtocolError
from pilot_trio.net import files
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.endpoint_table import EndpointTable, Row
from pilot_trio.wire.beacon import normalise_host

LOOK_INTERVAL: Final = 1.0  # seconds between looks whether a node is new or has moved: what a crash may cost
SAVE_INTERVAL: Final = 30.0  # seconds between saves that only say that nodes are still there
SAVE_SHARE: Final = 0.05  # of the time may be spent on saving: a large table takes a second
FINAL_SAVE_TIMEOUT: Final = 0.3  # seconds for the last save at the end; a disk that hangs must not hang the stop

logger: Final = logging.getLogger("pilot_trio.beacon")


async def load_endpoints(table: EndpointTable, path: Path, clock: Callable[[], float]) -> None:
    """Fill an empty table with what was saved and is not too old; without a usable file it stays empty."""
    try:
        data = await files.load(path)
        rows = [] if data is None else await trio.to_thread.run_sync(decode_rows, data, clock())
    except (OSError, ValueError) as exc:
        logger.warning("endpoints not restored path=%s error=%s", path, exc)
        return
    table.restore(rows, trio.current_time())


async def keep_endpoints(table: EndpointTable, path: Path, clock: Callable[[], float]) -> None:
    """Save the table whenever it has changed, and once more when cancelled.

    A node that the file does not know, or knows elsewhere, cannot be relayed to after a crash until it speaks again, and does
    not know that it should. So news is saved at once, by and large.
    """
    saved, saved_news, saved_at = table.changes, table.news, trio.current_time()
    pause = LOOK_INTERVAL
    try:
        while True:
            await trio.sleep(pause)
            now = trio.current_time()
            if table.news != saved_news or (table.changes != saved and now - saved_at >= SAVE_INTERVAL):
                saved, saved_news, saved_at = table.changes, table.news, now
                await _save(table, path, clock())
                pause = max(LOOK_INTERVAL, (trio.current_time() - now) / SAVE_SHARE)
    finally:
        if table.changes != saved:
            with trio.move_on_after(FINAL_SAVE_TIMEOUT, shield=True):
                await _save(table, path, clock())


async def _save(table: EndpointTable, path: Path, unix_now: float) -> None:
    rows = table.rows(trio.current_time())
    try:
        await trio.to_thread.run_sync(
            lambda: files.save_sync(path, encode_rows(rows, unix_now)), abandon_on_cancel=True
        )
    except OSError as exc:
        logger.warning("endpoints not saved path=%s error=%s", path, exc)


def encode_rows(rows: list[Row], unix_now: float) -> bytes:
    """Return the file's content."""
    nodes = [[row.node, row.endpoint.host, row.endpoint.port, round(row.age, 1), row.multi] for row in rows]
    return json.dumps({"saved_at": unix_now, "nodes": nodes}).encode()


def decode_rows(data: bytes, unix_now: float) -> list[Row]:
    """Return the rows of a file, aged by the time since it was saved. Raises `ValueError` for anything unexpected."""
    try:
        content: Any = json.loads(data)
        # A clock that was set back says nothing about the time in between; then the ages are what they were.
        since = max(0.0, unix_now - float(content["saved_at"]))
        return [_row(fields, since) for fields in content["nodes"]]
    except (KeyError, TypeError, LocalProtocolError, RecursionError) as exc:
        raise ValueError(f"damaged: {exc!r}") from exc


def _row(fields: Any, since: float) -> Row:
    node, host, port, age, multi = fields
    if not (type(node) is int and 0 < node < 1 << 32 and type(port) is int and 0 < port < 1 << 16):
        raise ValueError(f"damaged: node {node!r}, port {port!r}")
    return Row(node, Endpoint(normalise_host(host), port), float(age) + since, bool(multi))
