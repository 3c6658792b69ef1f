"""Log lines, repeated causes, and a log that does not drain."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pilot_trio.cli import logs

PATIENCE = 60.0  # seconds that a busy machine may take for what takes none


def record(message: str, level: int = logging.INFO, /, **kv: object) -> logging.LogRecord:
    made = logging.LogRecord("pilot_trio.test", level, __file__, 1, message, (), None)
    made.kv = kv
    return made


def pairs(made: logging.LogRecord) -> dict[str, object]:
    kv: dict[str, object] = vars(made)["kv"]
    return kv


def text(made: logging.LogRecord) -> str:
    line = logs.TextFormatter().format(made)
    stamp, rest = line.split(" ", 1)
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    return rest


@pytest.mark.parametrize(
    ("kv", "want"),
    [
        ({}, 'level=INFO msg="daemon running"'),
        ({"node_id": 2, "addr": "0:0000.0000.0002"}, 'level=INFO msg="daemon running" node_id=2 addr=0:0000.0000.0002'),
        ({"a": "two words"}, 'level=INFO msg="daemon running" a="two words"'),
        ({"a": "k=v"}, 'level=INFO msg="daemon running" a="k=v"'),
        ({"a": 'say "hi"'}, r'level=INFO msg="daemon running" a="say \"hi\""'),
        ({"a": ""}, 'level=INFO msg="daemon running" a=""'),
        ({"a": "x\ny"}, r'level=INFO msg="daemon running" a="x\ny"'),
        ({"a": True, "b": None, "c": 1.5}, 'level=INFO msg="daemon running" a=true b=<nil> c=1.5'),
        ({"a b": 1}, 'level=INFO msg="daemon running" "a b"=1'),
    ],
)
def test_a_text_line_is_time_level_message_then_pairs(kv: dict[str, Any], want: str) -> None:
    assert text(record("daemon running", **kv)) == want


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.DEBUG, "DEBUG"), (logging.INFO, "INFO"), (logging.WARNING, "WARN"), (logging.ERROR, "ERROR")],
)
def test_levels_are_spelled_as_the_reference_spells_them(level: int, name: str) -> None:
    assert text(record("x", level)) == f"level={name} msg=x"


def test_a_line_never_contains_a_line_break_not_even_with_a_traceback() -> None:
    try:
        raise RuntimeError("boom\nbang")
    except RuntimeError:
        made = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), __import__("sys").exc_info())
    line = logs.TextFormatter().format(made)
    assert "\n" not in line
    assert "boom" in line


def test_json_lines_have_the_same_keys() -> None:
    body = json.loads(logs.JSONFormatter().format(record("daemon running", logging.WARNING, node_id=2, path=os)))
    assert body["time"].endswith("Z")
    assert (body["level"], body["msg"], body["node_id"]) == ("WARN", "daemon running", 2)
    assert isinstance(body["path"], str)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_sixth_line_of_a_cause_is_held_back_and_summed_up_after_the_window() -> None:
    clock = Clock()
    repeats = logs.RepeatFilter(clock)
    shown = [len(repeats.admit(record("dial failed", error="refused", attempt=n))) for n in range(8)]
    assert shown == [1, 1, 1, 1, 1, 0, 0, 0]
    clock.now = logs.REPEAT_WINDOW - 0.001
    assert [r.getMessage() for r in repeats.admit(record("other"))] == ["other"]
    clock.now = logs.REPEAT_WINDOW
    summary, other = repeats.admit(record("other"))
    assert (summary.getMessage(), pairs(summary)["suppressed"], pairs(summary)["error"]) == (
        "dial failed",
        3,
        "refused",
    )
    assert other.getMessage() == "other"
    assert len(repeats.admit(record("dial failed", error="refused"))) == 1


def test_causes_are_told_apart_by_their_error_and_errors_always_pass() -> None:
    repeats = logs.RepeatFilter(Clock())
    for n in range(logs.REPEAT_MAX + 1):
        repeats.admit(record("dial failed", error="refused"))
        assert len(repeats.admit(record("fatal", logging.ERROR))) == 1, n
    assert repeats.admit(record("dial failed", error="refused")) == []
    assert len(repeats.admit(record("dial failed", error="timeout"))) == 1


def test_what_is_held_back_is_summed_up_at_the_end() -> None:
    repeats = logs.RepeatFilter(Clock())
    for _ in range(logs.REPEAT_MAX + 2):
        repeats.admit(record("x"))
    (summary,) = repeats.flush()
    assert pairs(summary)["suppressed"] == 2
    assert repeats.flush() == []


@pytest.mark.parametrize("extra", [0, 1])
def test_the_table_of_causes_is_bounded_and_tells_of_what_it_forgets(extra: int) -> None:
    repeats = logs.RepeatFilter(Clock())
    for _ in range(logs.REPEAT_MAX + 1):
        repeats.admit(record("first"))
    shown: list[logging.LogRecord] = []
    for n in range(logs.REPEAT_CAUSES_MAX - 1 + extra):
        shown += repeats.admit(record(f"cause {n}"))
    forgotten = [r for r in shown if r.getMessage() == "first"]
    assert len(forgotten) == extra


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def read_all(descriptor: int) -> str:
    chunks = b""
    while chunk := os.read(descriptor, 65536):
        chunks += chunk
    return chunks.decode()


@pytest.fixture
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    package = logging.getLogger("pilot_trio")
    before = root.handlers[:], root.level, package.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = before[0], before[3]
    root.setLevel(before[1])
    package.setLevel(before[2])


def close(handler: logging.Handler) -> None:
    """Close a handler and wait for its thread, longer than a process that ends does."""
    assert isinstance(handler, logs.LogHandler)
    handler.close()
    handler._writer.close(PATIENCE)
    assert not handler._writer._thread.is_alive()


@pytest.mark.usefixtures("restore_logging")
def test_a_configured_log_writes_lines_in_order_and_flushes_at_the_end(pipe: tuple[int, int]) -> None:
    handler = logs.configure("debug", "text", descriptor=pipe[1])
    log = logging.getLogger("pilot_trio.daemon")
    log.debug("one")
    log.info("two", extra={"kv": {"port": 7}})
    for _ in range(logs.REPEAT_MAX + 2):
        log.info("again")
    logging.getLogger("elsewhere").info("not ours")
    close(handler)
    os.close(pipe[1])
    lines = [line.split(" ", 1)[1] for line in read_all(pipe[0]).splitlines()]
    assert lines[:2] == ["level=DEBUG msg=one", "level=INFO msg=two port=7"]
    assert lines[2:-1] == ["level=INFO msg=again"] * logs.REPEAT_MAX
    assert lines[-1] == "level=INFO msg=again suppressed=2 window=10s"


@pytest.mark.usefixtures("restore_logging")
@pytest.mark.parametrize(("level", "shown"), [("warn", 2), ("error", 1), ("nonsense", 3), ("info", 3)])
def test_the_level_decides_what_is_written(pipe: tuple[int, int], level: str, shown: int) -> None:
    handler = logs.configure(level, "json", descriptor=pipe[1])
    log = logging.getLogger("pilot_trio.daemon")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    close(handler)
    os.close(pipe[1])
    assert len(read_all(pipe[0]).splitlines()) == shown


@pytest.mark.usefixtures("restore_logging")
def test_a_value_that_cannot_be_printed_does_not_end_the_caller(pipe: tuple[int, int]) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    handler = logs.configure("info", "text", descriptor=pipe[1])
    logging.getLogger("pilot_trio.x").info("bad", extra={"kv": {"a": Unprintable()}})
    logging.getLogger("pilot_trio.x").info("good")
    close(handler)
    os.close(pipe[1])
    assert read_all(pipe[0]).endswith("msg=good\n")


def test_a_log_that_nobody_drains_holds_up_neither_the_caller_nor_the_end(pipe: tuple[int, int]) -> None:
    writer = logs.LineWriter(pipe[1])
    line = "x" * 200
    for _ in range(logs.QUEUE_MAX * 3):  # far more than the pipe and the queue take
        writer.write(line)
    writer.close(timeout=0.01)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(read_all(pipe[0])))
    reader.start()
    writer.close(timeout=PATIENCE)
    os.close(pipe[1])
    reader.join(PATIENCE)
    lines = received[0].splitlines()
    dropped = [line for line in lines if "log lines dropped" in line]
    assert dropped
    count = sum(int(line.rsplit("=", 1)[1]) for line in dropped)
    assert len(lines) - len(dropped) + count == logs.QUEUE_MAX * 3


def test_a_log_whose_reader_is_gone_is_given_up(pipe: tuple[int, int]) -> None:
    writer = logs.LineWriter(pipe[1])
    os.close(pipe[0])
    writer.write("x")
    writer.close(timeout=PATIENCE)
    writer.write("y")
    assert not writer._thread.is_alive()
