"""Is a node there, how far away, how fast: `ping`, `traceroute`, `bench`, `prefer-direct`."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from pilot_trio.address import Address, quote
from pilot_trio.cli.durations import format_duration
from pilot_trio.cli.framework import argument, command, count, switch, timeout
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import ClientStream, DaemonGone, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import EXIT_FAILURE, CliError, format_bytes
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, dial_hint
from pilot_trio.errors import DaemonError
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.service_ports import ECHO_PORT

_SECTION: Final = "Probing"
PING_PAUSE: Final = 1.0  # seconds between two attempts, as the reference does it
BENCH_MB_MAX: Final = 4096  # size of one run; protocol, `spec/cli.md` §6.5
BENCH_WRITE: Final = 64 * 1024  # bytes per write; larger ones measure the path, not this program
_MIB: Final = 1 << 20
_TRACE: Final = struct.Struct("!4sQQ")  # magic, sent and received in Unix nanoseconds
_TARGET: Final = "address|hostname"


@command("ping", section=_SECTION)
@argument("target", _TARGET)
@count("count", "number of attempts", 4)
@switch("reuse-conn", "one stream for all attempts")
@switch("trace", "say where the time goes")
@switch("no-auto-handshake", "do not check trust first")
@timeout("5s", "longest duration of the whole run")
def ping(
    session: Session, target: str, count: int, reuse_conn: bool, trace: bool, no_auto_handshake: bool, timeout: float
) -> int:
    """Measure the round trip to a node's echo service."""
    out = session.output
    reuse = reuse_conn or "PILOT_PING_REUSE_CONN" in session.environ
    trace = trace or "PILOTCTL_TRACE_TIME" in session.environ
    steps = _Steps()
    with session.connect() as client:
        steps.mark("connect")
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        steps.mark("resolve")
        check_target(session, client, address, skip=no_auto_handshake)
        steps.mark("trust")
        out_line = None if out.as_json else out.line
        if out_line:
            out_line(f"PING {address}")
        run = _PingRun(client, address, deadline_in(timeout), reuse=reuse, trace=trace)
        rows: list[dict[str, Any]] = []
        for row in run.attempts(count):
            rows.append(row)
            if out_line:
                out_line(_ping_line(row))
    if trace:
        out.note("\n".join(f"TRACE {label:12} {ms:.3f}ms" for label, ms in steps.marks))
    data: dict[str, Any] = {"target": str(address), "to": str(address), "timeout": run.timed_out, "results": rows}
    if trace:
        data["trace"] = [{"label": label, "ms": ms} for label, ms in steps.marks]
    out.result(data, lambda: None)
    return EXIT_FAILURE if rows and all("error" in row for row in rows) else 0


@command("traceroute", section=_SECTION)
@argument("target", _TARGET)
@timeout("30s", "longest duration of the whole run")
def traceroute(session: Session, target: str, timeout: float) -> None:
    """Measure the set-up of a stream and three round trips; there are no hops in between."""
    deadline = deadline_in(timeout)
    out = session.output
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        data: dict[str, Any] = {"target": str(address)}
        began = time.perf_counter()
        try:
            stream = client.dial(address, ECHO_PORT, deadline)
        except (DaemonError, DaemonTimeout, DaemonGone) as exc:
            data |= {"setup_ms": _ms(time.perf_counter() - began), "error": _text(exc)}
        else:
            data["setup_ms"] = _ms(time.perf_counter() - began)
            data["rtt_samples"] = [_sample(stream, b"trace-%d" % number, deadline) for number in range(3)]
            _close(stream, deadline)

    def human() -> None:
        out.line(f"TRACEROUTE {address}")
        if "error" in data:
            out.line(f"  error after {data['setup_ms']} ms: {data['error']}")
            return
        out.line(f"  1  {address}  setup={data['setup_ms']} ms")
        for sample in data["rtt_samples"]:
            out.line(
                f"     rtt={sample.get('rtt_ms')} ms bytes={sample.get('bytes')}"
                if "bytes" in sample
                else f"     {sample}"
            )

    out.result(data, human)


@command("bench", section=_SECTION)
@argument("target", _TARGET)
@argument("size_mb", "size_mb", required=False)
@switch("no-auto-handshake", "do not check trust first")
@timeout("120s", "longest duration of the whole run")
def bench(session: Session, target: str, size_mb: str | None, no_auto_handshake: bool, timeout: float) -> None:
    """Send data to a node's echo service and measure the throughput, there and back."""
    size = _bench_size(size_mb or "1")
    out = session.output
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        deadline = deadline_in(timeout)
        try:
            stream = client.dial(address, ECHO_PORT, deadline)
        except (DaemonError, DaemonTimeout, DaemonGone) as exc:
            raise _cannot_connect(address, ECHO_PORT, exc) from exc
        out.note(f"BENCH {address} — sending {format_bytes(size)} via echo port")
        with out.progress(f"bench {address}", size) as advance:
            run = _BenchRun(stream, size)
            failure = run.run(deadline, advance)
        if failure is None:
            _close(stream, deadline_in(REQUEST_TIMEOUT))
    data = {"target": str(address), **run.figures(), "complete": failure is None}
    if failure is not None:
        code = "timeout" if isinstance(failure, DaemonTimeout) else "connection_failed"
        text = f"bench: {run.received} of {size} bytes came back: {_text(failure)}"
        raise CliError(code, text, extra={"results": data})

    def human() -> None:
        sent, total = data["send_mbps"], data["total_mbps"]
        spans = format_duration(round(run.send_seconds, 3)), format_duration(round(run.total_seconds, 3))
        out.line(f"  Sent:     {format_bytes(run.sent)} in {spans[0]} ({sent:.1f} MB/s)")
        out.line(f"  Echoed:   {format_bytes(run.received)} in {spans[1]} ({total:.1f} MB/s round-trip)")

    out.result(data, human)


@command("prefer-direct", section=_SECTION)
@argument("target", "node_id|address|hostname")
@timeout()
def prefer_direct(session: Session, target: str, timeout: float) -> None:
    """Forget the route to a node, so that the next dial tries the direct one first."""
    node = session.resolve_node(target, timeout)
    try:
        reply = session.ask_once(Code.PREFER_DIRECT, struct.pack("!I", node), "prefer-direct: prefer_direct", timeout)
    except CliError as exc:
        if "unknown command" in exc.message:
            raise CliError("not_implemented", "daemon does not support prefer-direct", "upgrade the daemon") from exc
        raise
    out = session.output

    def human() -> None:
        out.line(f"route to node {node} forgotten")
        facts = ("had_tunnel", "was_relay_active", "was_relay_pinned")
        out.line("  " + " · ".join(f"{fact.replace('_', ' ')}: {'yes' if reply.get(fact) else 'no'}" for fact in facts))
        if reply.get("resolve_error"):
            out.line(f"  {reply['resolve_error']}")

    out.result(reply, human)


class _Steps:
    """Time since the start at each step."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.marks: list[tuple[str, float]] = []

    def mark(self, label: str) -> None:
        self.marks.append((label, _ms(time.perf_counter() - self._began)))


class _PingRun:
    """Attempts one after the other, until one deadline for all."""

    def __init__(self, client: IPCClient, address: Address, deadline: float, *, reuse: bool, trace: bool) -> None:
        self._client = client
        self._address = address
        self._deadline = deadline
        self._reuse = reuse
        self._trace = trace
        self._stream: ClientStream | None = None
        self.timed_out = False

    def attempts(self, count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            if number and not self._pause():
                break
            yield self._attempt(number)
            if self.timed_out:
                break
        if self._stream is not None:
            _close(self._stream, deadline_in(REQUEST_TIMEOUT))

    def _pause(self) -> bool:
        left = self._deadline - time.monotonic()
        time.sleep(max(min(PING_PAUSE, left), 0.0))
        self.timed_out = left <= PING_PAUSE
        return not self.timed_out

    def _attempt(self, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {"seq": number}
        reused = self._stream is not None
        began = time.perf_counter()
        try:
            stream = self._stream or self._client.dial(self._address, ECHO_PORT, self._deadline)
            dialled = time.perf_counter()
            answer = self._echo(stream, number)
            ended = time.perf_counter()
            if self._reuse:
                self._stream = stream
            else:
                _close(stream, self._deadline)
        except (DaemonError, DaemonTimeout, DaemonGone) as exc:
            self.timed_out = isinstance(exc, DaemonTimeout)
            self._stream = None
            return row | {"error": _text(exc)}
        row |= {"bytes": len(answer), "rtt_ms": _ms(ended - began)}
        if reused:
            row["reused"] = True
        if self._trace:
            row |= {"dial_ms": _ms(dialled - began), "echo_ms": _ms(ended - dialled), **_one_way(answer)}
        return row

    def _echo(self, stream: ClientStream, number: int) -> bytes:
        if not self._trace:
            data = b"ping-%d" % number
            size = len(data)
        else:
            data = b"TRCE" + struct.pack("!Q", time.time_ns())
            size = _TRACE.size
        stream.send(data, self._deadline)
        answer = b""
        while len(answer) < size:
            piece = stream.receive(self._deadline)
            if not piece:
                raise DaemonGone("the stream ended without an answer")
            answer += piece
        return answer


class _BenchRun:
    """One transfer through the echo service. Sending and reading alternate, so that neither waits for the other."""

    def __init__(self, stream: ClientStream, size: int) -> None:
        self._stream = stream
        self._size = size
        self.sent = self.received = 0
        self.send_seconds = self.total_seconds = 0.0

    def run(self, deadline: float, advance: Any) -> Exception | None:
        """Transfer everything; return what went wrong, if anything did."""
        block = bytes(BENCH_WRITE)
        began = time.perf_counter()
        try:
            while self.sent < self._size:
                piece = block[: self._size - self.sent]
                self._stream.send(piece, deadline)
                self.sent += len(piece)
                self._count(self._stream.take(), advance)
            self.send_seconds = time.perf_counter() - began
            while self.received < self._size:
                data = self._stream.receive(deadline)
                if not data:
                    return DaemonGone("the echo stream ended early")
                self._count(data, advance)
        except (DaemonTimeout, DaemonGone) as exc:
            return exc
        finally:
            self.total_seconds = time.perf_counter() - began
            self.send_seconds = self.send_seconds or self.total_seconds
        return None

    def figures(self) -> dict[str, Any]:
        """Return sizes, times, and rates in MiB per second."""
        return {
            "sent_bytes": self.sent,
            "recv_bytes": self.received,
            "send_duration_ms": round(self.send_seconds * 1000),
            "total_duration_ms": round(self.total_seconds * 1000),
            "send_mbps": self.sent / _MIB / max(self.send_seconds, 1e-9),
            "total_mbps": self.received / _MIB / max(self.total_seconds, 1e-9),
        }

    def _count(self, data: bytes, advance: Any) -> None:
        if data:
            self.received += len(data)
            advance(self.received)


def _bench_size(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        reason = f"strconv.ParseFloat: parsing {quote(text)}: invalid syntax"
        raise CliError("invalid_argument", f"invalid size: {reason}") from None
    if not size > 0 or math.isinf(size):
        raise CliError("invalid_argument", f"size must be a positive number of MB, got {quote(text)}")
    if size > BENCH_MB_MAX:
        raise CliError("invalid_argument", f"size {size:g} MB exceeds maximum of {BENCH_MB_MAX} MB")
    return max(int(size * _MIB), 1)


def _sample(stream: ClientStream, data: bytes, deadline: float) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        stream.send(data, deadline)
        answer = stream.receive(deadline)
    except (DaemonTimeout, DaemonGone) as exc:
        return {"rtt_ms": _ms(time.perf_counter() - began), "error": _text(exc)}
    if not answer:
        return {"rtt_ms": _ms(time.perf_counter() - began), "error": "the stream ended without an answer"}
    return {"rtt_ms": _ms(time.perf_counter() - began), "bytes": len(answer)}


def _one_way(answer: bytes) -> dict[str, float]:
    if len(answer) < _TRACE.size:
        return {}
    _, sent, received = _TRACE.unpack_from(answer)
    return {"to_server_ms": _ms((received - sent) / 1e9), "from_server_ms": _ms((time.time_ns() - received) / 1e9)}


def _ping_line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"seq={row['seq']} error: {row['error']}"
    line = f"seq={row['seq']} bytes={row['bytes']} time={row['rtt_ms']}ms"
    parts = [
        f"{key.removesuffix('_ms')}={row[key]}ms"
        for key in ("dial_ms", "echo_ms", "to_server_ms", "from_server_ms")
        if key in row
    ]
    return f"{line}  [{' '.join(parts)}]" if parts else line


def _close(stream: ClientStream, deadline: float) -> None:
    # The measurement is done; a daemon that is slow to close does not change it.
    with suppress(DaemonError, DaemonTimeout, DaemonGone):
        stream.close(deadline)


def _cannot_connect(address: Address, port: int, exc: Exception) -> CliError:
    code = "timeout" if isinstance(exc, DaemonTimeout) else "connection_failed"
    return CliError(code, f"cannot connect to {address} port {port}: {_text(exc)}", dial_hint(str(exc), address, port))


def _text(exc: Exception) -> str:
    if isinstance(exc, DaemonError):
        return f"dial: daemon: {exc}"
    return "timeout" if isinstance(exc, DaemonTimeout) else str(exc)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


COMMANDS: Final = {c.name: c for c in (ping, traceroute, bench, prefer_direct)}
