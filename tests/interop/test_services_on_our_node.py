"""What the services do when processes die, and what webhooks and the Python SDK see, on our node and on the real one."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import attrs
import h11
import pytest
import trio

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoHome, open_go_daemon
from tests.interop.ours import CTL, open_our_daemon, our_ctl
from tests.interop.rendezvous import open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]
OWN: Final = "0:0000.0000.0001"
SECRET: Final = "key of the signature"


@asynccontextmanager
async def public_home(make: MakeHome) -> AsyncGenerator[GoHome, None]:
    async with open_rendezvous() as rendezvous:
        assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
        yield make(rendezvous.handle.registry, rendezvous.handle.beacon)


def opened(daemon: str) -> Any:
    return open_go_daemon if daemon == "go" else open_our_daemon


@pytest.mark.parametrize("sender", ["pilotctl", "pilot-trio"])
@pytest.mark.parametrize("daemon", ["go", "ours"])
async def test_a_file_survives_the_death_of_the_daemon(make_go_home: MakeHome, daemon: str, sender: str) -> None:
    size = 200 << 20  # lasts about a second
    async with public_home(make_go_home) as home:
        path = home.root / "large.bin"
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        partial = home.root / ".pilot" / "received" / ".partial" / digest[:32]
        command = [str(home.programs.ctl)] if sender == "pilotctl" else list(CTL)

        def written() -> int:
            return partial.stat().st_size if partial.exists() else 0

        async with opened(daemon)(home, "-public"):
            process = await trio.lowlevel.open_process(
                [*command, "--json", "send-file", OWN, str(path)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=home.environment,
            )
            with trio.fail_after(60):
                while written() < 1 << 20:
                    assert process.poll() is None
                    await trio.sleep(0.005)  # a file tells nobody that it has grown
        # The daemon is dead by SIGKILL here.
        with trio.fail_after(90):
            assert await process.wait() == 1
        kept = written()
        assert 0 < kept < size
        async with opened(daemon)(home, "-public"):
            again = await (home.ctl if sender == "pilotctl" else _bound(home))("send-file", OWN, str(path), timeout=200)
            sent = again.data
        assert (sent["bytes_resumed"], sent["verified"], sent["sha256"]) == (kept, True, digest)
        (stored,) = (home.root / ".pilot" / "received").glob("large-*.bin")
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == digest


def _bound(home: GoHome) -> Any:
    async def run(*words: str, timeout: float) -> Any:
        return await our_ctl(home, *words, timeout=timeout)

    return run


@attrs.define
class Receiver:
    """A local HTTP server that keeps what is posted to it and answers as told."""

    posts: list[tuple[dict[str, str], bytes]] = attrs.field(factory=list)
    failures: int = 0  # requests still to be answered with 500
    _progress: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        headers: dict[str, str] = {}
        body = b""
        async with stream:
            while True:  # a daemon that finds us slow hangs up and posts again
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    try:
                        connection.receive_data(await stream.receive_some())
                    except trio.BrokenResourceError:
                        return
                elif isinstance(event, h11.Request):
                    headers, body = {k.decode(): v.decode() for k, v in event.headers}, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self.posts.append((headers, body))
                    status, self.failures = (500, self.failures - 1) if self.failures else (200, 0)
                    answer = connection.send(h11.Response(status_code=status, headers=[("content-length", "0")]))
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all((answer or b"") + (connection.send(h11.EndOfMessage()) or b""))
                    self._progress.set()
                    self._progress = trio.Event()
                    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                        return
                    connection.start_next_cycle()
                else:
                    return

    async def until(self, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        with trio.fail_after(60):
            while not done(self.events()):
                await self._progress.wait()
        return self.events()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.posts]


@pytest.mark.parametrize("ctl", ["pilotctl", "pilot-trio"])
@pytest.mark.parametrize("daemon", ["go", "ours"])
async def test_events_are_posted_signed_in_order_and_again_after_a_failure(
    make_go_home: MakeHome, daemon: str, ctl: str
) -> None:
    receiver = Receiver()
    async with trio.open_nursery() as nursery, public_home(make_go_home) as home:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, receiver.serve, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/hook"
        async with opened(daemon)(home, "-public", "-webhook-secret", SECRET):
            run = home.ctl if ctl == "pilotctl" else lambda *words: our_ctl(home, *words)
            assert (await run("set-webhook", url)).data["webhook"] == url
            receiver.failures = 1
            for number in range(3):
                await run("send-message", OWN, "--data", str(number) * (number + 1))

            def messages(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
                return [event for event in events if event["event"] == "message.received"]

            events = await receiver.until(lambda events: len(messages(events)) >= 3)
            assert events[0] == events[1]  # the first attempt failed, the second has the same body
            distinct = list({event["event_id"]: event for event in events}.values())
            assert [event["event_id"] for event in distinct] == list(range(1, len(distinct) + 1))
            assert [event["data"]["size"] for event in messages(distinct)] == [1, 2, 3]
            assert {event["node_id"] for event in messages(distinct)} == {1}
            assert list(distinct[0]) == ["event_id", "event", "node_id", "timestamp", "data"]
            for headers, body in receiver.posts:
                expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
                assert headers["x-pilot-signature-256"] == expected
                assert headers["content-type"] == "application/json"
            assert (await run("clear-webhook")).returncode == 0
            assert (await run("send-message", OWN, "--data", "unheard")).returncode == 0
            assert all(event["data"]["size"] < 7 for event in messages(receiver.events()))
        nursery.cancel_scope.cancel()


SDK: Final = """
import json, pathlib, sys, threading, time
from pilotprotocol import Driver

socket, own, path = sys.argv[1:]
results = {}
driver = Driver(socket)
results["text"] = driver.send_message(own, b"hello", "text")
results["json"] = driver.send_message(own, b"{}", "json")
results["binary"] = driver.send_message(own, bytes([0, 255]), "binary")
results["file"] = driver.send_file(own, path)

events = []
ready = threading.Event()
def listen():
    other = Driver(socket)
    for topic, data in other.subscribe_event(own, "news", timeout=40):
        events.append([topic, data.decode() if isinstance(data, bytes) else data])
        ready.set()
        return
thread = threading.Thread(target=listen, daemon=True)
thread.start()
for _ in range(600):
    results["published"] = driver.publish_event(own, "news", b"extra")
    if ready.wait(0.05):
        break
results["event"] = events[0]
print(json.dumps(results, default=lambda value: value.decode()), flush=True)
import os; os._exit(0)
"""


@pytest.mark.parametrize("daemon", ["go", "ours"])
async def test_the_python_sdk_sends_and_listens(make_go_home: MakeHome, daemon: str) -> None:
    async with public_home(make_go_home) as home, opened(daemon)(home, "-public"):
        path = home.root / "note.txt"
        path.write_bytes(b"a note")
        with trio.fail_after(90):
            done = await trio.run_process(
                [sys.executable, "-c", textwrap.dedent(SDK), str(home.socket), OWN, str(path)],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=home.environment,
            )
        assert done.returncode == 0, done.stderr.decode()
        results = json.loads(done.stdout)
        assert results["text"]["ack"] == "ACK TEXT 5 bytes"
        assert results["json"]["ack"] == "ACK JSON 2 bytes"
        assert results["binary"]["ack"] == "ACK BINARY 2 bytes"
        assert results["file"]["ack"] == "ACK FILE 6 bytes"
        assert results["event"] == ["news", "extra"]
        inbox = sorted((home.root / ".pilot" / "inbox").iterdir(), key=lambda p: p.name.partition("-")[2])
        assert [json.loads(p.read_bytes())["type"] for p in inbox] == ["TEXT", "JSON", "BINARY"]
        (stored,) = (home.root / ".pilot" / "received").glob("note-*.txt")
        assert stored.read_bytes() == b"a note"
