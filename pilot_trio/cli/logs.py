"""The daemon's log: lines that people read and that the reference's command line parses (`spec/services.md` §8.6).

Modules log with the standard library: `log.info("daemon registered", extra={"kv": {"node_id": 5}})`. Here the records
become text (`time=… level=INFO msg="daemon registered" node_id=5`) or JSON, repeated causes are summed up, and a thread
writes: a log that nobody drains, or a full disk, must not hold up the node.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pilot_trio.address import quote
from pilot_trio.wire import canonical_json

REPEAT_WINDOW: Final = 10.0  # seconds in which lines of one cause are counted together
REPEAT_MAX: Final = 5  # lines of one cause per window that are written; the rest becomes one summary line
REPEAT_CAUSES_MAX: Final = 512  # causes remembered; the one known for longest is forgotten first
QUEUE_MAX: Final = 4096  # lines waiting for a log that does not drain; more are dropped and counted
CLOSE_TIMEOUT: Final = 0.15  # seconds that the end of the process waits for the last lines; part of its two

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
FORMATS: Final = ("text", "json")
_NAMES: Final = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}


class TextFormatter(logging.Formatter):
    """`time=2026-11-23T18:27:03.970Z level=INFO msg="daemon running" node_id=2`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = _utc(record).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"
        parts = [f"time={stamp}", f"level={_level(record)}", f"msg={_quoted(record.getMessage())}"]
        parts += [f"{_quoted(str(key))}={_quoted(_shown(value))}" for key, value in _pairs(self, record)]
        return " ".join(parts)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = _utc(record).strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"
        body: dict[str, object] = {"time": stamp, "level": _level(record), "msg": record.getMessage()}
        body.update((str(key), _plain(value)) for key, value in _pairs(self, record))
        return canonical_json.dumps(body).decode()


class _Burst(NamedTuple):
    started: float
    seen: int
    last: logging.LogRecord


class RepeatFilter:
    """Let through the first `REPEAT_MAX` lines of a cause in `REPEAT_WINDOW`, then say how many more there were.

    A cause is logger, message and `error`; other values (a peer, a port) may differ from line to line. Errors of level
    ERROR are never held back: they are rare, and the last one explains why the process ended.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bursts: OrderedDict[tuple[str, str, str], _Burst] = OrderedDict()

    def admit(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """Return what is to be written now: summaries of bursts that are over, then the record unless held back."""
        now = self._clock()
        ready = self._expire(now)
        if record.levelno >= logging.ERROR:
            return [*ready, record]
        cause = str(getattr(record, "kv", {}).get("error", ""))
        key = (record.name, str(record.msg), cause)
        burst = self._bursts.get(key) or _Burst(now, 0, record)
        self._bursts[key] = burst._replace(seen=burst.seen + 1, last=record)
        if len(self._bursts) > REPEAT_CAUSES_MAX:
            _, oldest = self._bursts.popitem(last=False)
            ready += _summary(oldest)
        return [*ready, record] if burst.seen < REPEAT_MAX else ready

    def flush(self) -> list[logging.LogRecord]:
        """Return the summaries of everything held back so far."""
        return self._expire(float("inf"))

    def _expire(self, now: float) -> list[logging.LogRecord]:
        ready: list[logging.LogRecord] = []
        while self._bursts:  # in order of their start
            key, burst = next(iter(self._bursts.items()))
            if now - burst.started < REPEAT_WINDOW:
                break
            del self._bursts[key]
            ready += _summary(burst)
        return ready


class LineWriter:
    """Write lines to a file descriptor from a thread of its own; never block the caller.

    `tick` is called in that thread after each batch (log rotation).
    """

    def __init__(self, descriptor: int, tick: Callable[[], None] | None = None) -> None:
        self._descriptor = descriptor
        self._tick = tick
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pilot-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line; with `QUEUE_MAX` waiting it is dropped, and counted."""
        with self._wake:
            if len(self._lines) >= QUEUE_MAX:
                self._dropped += 1
                return
            self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
            self._wake.notify()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Write what is queued, waiting at most `timeout` seconds for it."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._closing:
                    self._wake.wait()
                batch, dropped = b"".join(self._lines), self._dropped
                self._lines.clear()
                self._dropped = 0
                closing = self._closing
            if dropped:
                batch += b'level=WARN msg="log lines dropped: the log does not drain" count=%d\n' % dropped
            if not self._write(batch):
                return  # nowhere to write to any more: standard error was closed
            if self._tick is not None:
                self._tick()
            if closing:
                return

    def _write(self, batch: bytes) -> bool:
        view = memoryview(batch)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                time.sleep(0.05)  # a descriptor that somebody else made non-blocking; this thread may wait
            except OSError:
                return False
        return True


class LogHandler(logging.Handler):
    """Format, hold back repetitions, hand over to the writer."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter, repeats: RepeatFilter | None = None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._writer = writer
        self._repeats = repeats or RepeatFilter()

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self._repeats.admit(record))

    def close(self) -> None:
        """Write everything that is still held back or queued."""
        self.acquire()
        try:
            self._put(self._repeats.flush())
        finally:
            self.release()
        self._writer.close()
        super().close()

    def _put(self, records: Iterable[logging.LogRecord]) -> None:
        for record in records:
            try:
                self._writer.write(self.format(record))
            except Exception:
                # A value that cannot be printed must not end the caller.
                self.handleError(record)


def configure(
    level: str, format_: str, *, descriptor: int = 2, tick: Callable[[], None] | None = None
) -> logging.Handler:
    """Send the package's records, and warnings of the libraries below it, to `descriptor`. Unknown words mean defaults.

    Close the handler returned at the end of the process.
    """
    formatter = JSONFormatter() if format_ == "json" else TextFormatter()
    handler = LogHandler(LineWriter(descriptor, tick), formatter)
    logging.raiseExceptions = False  # a broken log line is not worth a traceback on standard error
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pilot_trio").setLevel(LEVELS.get(level, logging.INFO))
    return handler


def _summary(burst: _Burst) -> list[logging.LogRecord]:
    suppressed = burst.seen - REPEAT_MAX
    if suppressed <= 0:
        return []
    record = logging.makeLogRecord(burst.last.__dict__)
    record.kv = {**getattr(record, "kv", {}), "suppressed": suppressed, "window": f"{REPEAT_WINDOW:g}s"}
    return [record]


def _utc(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname)


def _pairs(formatter: logging.Formatter, record: logging.LogRecord) -> Iterable[tuple[object, object]]:
    kv: Mapping[str, object] = getattr(record, "kv", {})
    yield from kv.items()
    if record.exc_info and record.exc_info[0] is not None:
        yield "traceback", formatter.formatException(record.exc_info)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    needs = not text or any(c in ' "=\\' or not c.isprintable() for c in text)
    return quote(text) if needs else text


def _plain(value: object) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
