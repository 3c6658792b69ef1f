"""Messages, files and events on one node: the real pilotctl and ours, on the real daemon and on ours.

Every test holds for each of the four pairs with the same assertions, so that a difference between them cannot hide.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import CTL_TIMEOUT, CtlResult, GoHome, open_go_daemon
from tests.interop.ours import CTL, open_our_daemon
from tests.interop.rendezvous import open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]
OWN: Final = "0:0000.0000.0001"
PAIRS: Final = [(ctl, daemon) for daemon in ("go", "ours") for ctl in ("pilotctl", "pilot-trio")]
# What decides it is whether a tunnel to oneself happens to be listed.
VOLATILE: Final = {"first_contact"}
MUCH_TIMEOUT: Final = 40.0  # seconds for 64 MiB, which take one or two
ATTEMPTS: Final = 5  # at times that add up to a hundredth of a millisecond


def comparable(result: CtlResult) -> dict[str, Any]:
    """Return what a command that succeeded has told, without what differs from time to time."""
    data = result.data
    assert isinstance(data, dict)
    return {key: value for key, value in data.items() if key not in VOLATILE}


@attrs.frozen
class Setup:
    """A home with a running public node, and the command line that talks to it."""

    home: GoHome
    program: tuple[str, ...]
    daemon: str = "ours"

    @property
    def inbox(self) -> Path:
        return self.home.root / ".pilot" / "inbox"

    @property
    def received(self) -> Path:
        return self.home.root / ".pilot" / "received"

    async def ctl(self, *words: str, stdin: bytes = b"") -> CtlResult:
        with trio.fail_after(CTL_TIMEOUT):
            done = await trio.run_process(
                [*self.program, "--json", *words],
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self.home.environment,
            )
        return CtlResult(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def data(self, words: str, stdin: bytes = b"") -> dict[str, Any]:
        return comparable(await self.ctl(*words.split(), stdin=stdin))

    async def error(self, words: str) -> tuple[str, str]:
        result = await self.ctl(*words.split())
        assert (result.returncode, result.output) == (1, "")
        return result.envelope["code"], result.envelope["message"]

    def file(self, name: str, content: bytes) -> Path:
        path = self.home.root / name
        path.write_bytes(content)
        return path

    def messages(self) -> list[dict[str, Any]]:
        """The inbox's files, oldest first."""
        paths = sorted(self.inbox.glob("*.json"), key=lambda path: path.name.partition("-")[2])
        return [json.loads(path.read_bytes()) for path in paths]


@asynccontextmanager
async def open_setup(make: MakeHome, pair: tuple[str, str], **environment: str) -> AsyncGenerator[Setup, None]:
    ctl, daemon = pair
    async with open_rendezvous() as rendezvous:
        assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
        home = make(rendezvous.handle.registry, rendezvous.handle.beacon)
        home.environment.update(environment)
        program = (str(home.programs.ctl),) if ctl == "pilotctl" else CTL
        opened = open_go_daemon if daemon == "go" else open_our_daemon
        async with opened(home, "-public", "-hostname", "alpha"):
            yield Setup(home, program, daemon)


@pytest.fixture(params=PAIRS, ids=["-on-".join(pair) for pair in PAIRS])
async def setup(request: pytest.FixtureRequest, make_go_home: MakeHome) -> AsyncGenerator[Setup, None]:
    async with open_setup(make_go_home, request.param) as made:
        yield made


async def test_messages_arrive_as_they_were_sent(setup: Setup) -> None:
    one = await setup.data("send-message alpha --data hello")
    assert one.pop("message_id")
    assert one == {
        "target": OWN, "to": OWN, "type": "text", "seq": 0, "bytes": 5, "ack": "ACK TEXT 5 bytes", "tagged": True, "reused": False
    }  # fmt: skip
    assert (await setup.data('send-message 1 --type json --data {"a":1}'))["ack"] == "ACK JSON 7 bytes"
    assert (await setup.data("send-message 1 --type binary --data x"))["ack"] == "ACK BINARY 1 bytes"
    assert (await setup.data("send-message 1 --data -", stdin=b"two\nlines\n"))["bytes"] == 10
    path = setup.file("payload", b"\x00\xff")
    assert (await setup.data(f"send-message 1 --data-file {path}"))["bytes"] == 2
    stored = setup.messages()
    assert [(m["type"], m.get("data"), m.get("data_b64"), m["bytes"]) for m in stored] == [
        ("TEXT", "hello", None, 5),
        ("JSON", '{"a":1}', None, 7),
        ("BINARY", None, "eA==", 1),
        ("TEXT", "two\nlines\n", None, 10),
        ("TEXT", None, "AP8=", 2),
    ]
    assert {m["from"] for m in stored} == {OWN}
    assert len({m["message_id"] for m in stored}) == 5


async def test_several_messages_share_a_stream_on_request(setup: Setup) -> None:
    for flag, reused in (("--reuse-conn", [False, True, True]), ("", [False, False, False])):
        many = await setup.data(f"send-message 1 --data hi --count 3 {flag}")
        assert many["reuse_conn"] is bool(flag)
        assert [row["reused"] for row in many["results"]] == reused
        assert [row["seq"] for row in many["results"]] == [0, 1, 2]
        assert {row["ack"] for row in many["results"]} == {"ACK TEXT 2 bytes"}
    assert len(setup.messages()) == 6


async def test_a_timed_message_says_where_the_time_went(setup: Setup) -> None:
    for _ in range(ATTEMPTS):
        traced = await setup.data("send-message 1 --data hi --trace")
        assert traced["inner_ack"] == "ACK TEXT 2 bytes"
        assert json.loads(traced["ack"]).keys() == {
            "received_at_ns", "inbox_written_at_ns", "ack_sent_at_ns", "sent_at_ns", "inner_ack"
        }  # fmt: skip
        parts = traced["to_receiver_ms"] + traced["receiver_process_ms"] + traced["return_trip_ms"]
        if parts == pytest.approx(traced["total_ms"], abs=0.01):
            break  # else it lost its turn between two looks at the clock, as pilotctl does now and then
    else:
        pytest.fail(f"the parts never add up: {traced}")
    assert {row["label"] for row in traced["trace"]} == {
        "connectDriver", "parseAddrOrHostname", "maybeAutoHandshake", "dial+send", "dataexchange.Dial"
    }  # fmt: skip
    assert setup.messages()[0]["data"] == "hi"


async def test_an_answer_is_found_by_the_message_it_names(setup: Setup) -> None:
    own = await setup.data("send-message 1 --data ping --wait 5s")  # a node's own message comes back as its answer
    assert own["reply"]["data"] == "ping"
    assert own["reply"]["message_id"] == own["message_id"]
    assert own["reply"].keys() == setup.messages()[0].keys()
    answer = await setup.data(f"send-message 1 --data pong --reply-to {own['message_id']}")
    assert answer["reply_to"] == own["message_id"]
    assert setup.messages()[-1]["reply_to"] == own["message_id"]
    # From now on this peer is known to name what it answers: a message that names nothing is held back, then taken.
    later = await setup.data("send-message 1 --data again --wait 5s")
    assert (later["reply"]["data"], later["reply_after_ms"] >= 700) == ("again", True)
    # An answer to another message is no answer.
    code, text = await setup.error("send-message 1 --data x --reply-to other --wait 600ms")
    assert (code, text) == ("timeout", f'no reply from "{OWN}" within 600ms')


async def test_an_answer_may_name_an_entry_of_the_inbox(setup: Setup) -> None:
    sent = await setup.data("send-message 1 --data question")
    entry = (await setup.data("inbox"))["messages"][0]["id"]
    assert (await setup.data(f"send-message 1 --data answer --reply-to {entry}"))["reply_to"] == sent["message_id"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("send-message 1", "invalid_argument", "--data is required"),
        ("send-message 1 --data x --type yaml", "invalid_argument", 'unknown type "yaml" (use text, json, or binary)'),
        ("send-message 1 --data x --data-file y", "invalid_argument", "give --data or --data-file, not both"),
        (
            "send-message 1 --data-file /nowhere",
            "invalid_argument",
            "read --data-file: open /nowhere: no such file or directory",
        ),
        ("send-message 1 --data-file /dev/null", "invalid_argument", "--data-file /dev/null is empty"),
        (
            "send-message 1 --data x --reply-to a!b",
            "invalid_argument",
            "--reply-to must be a message ID: 1-128 characters of A-Z a-z 0-9 . _ : -",
        ),
        ("send-message 1 --data x --timeout 0", "invalid_argument", "--timeout must be a positive duration"),
        ("send-file 1 /tmp", "invalid_argument", "/tmp is a directory, not a file"),
        ("send-file 1 /nowhere", "not_found", "file not found: /nowhere"),
        ("inbox read ../x", "invalid_argument", 'invalid message id "../x"'),
        ("inbox --since soon", "invalid_argument", "--since must be a duration (5m, 1h) or an RFC3339 timestamp"),
        ("publish 1 t", "invalid_argument", "--data is required"),
    ],
)
@pytest.mark.parametrize("ctl", ["pilotctl", "pilot-trio"])
async def test_refusals_have_the_same_words(make_go_home: MakeHome, ctl: str, words: str, code: str, text: str) -> None:
    async with open_setup(make_go_home, (ctl, "ours")) as setup:
        assert await setup.error(words) == (code, text)


async def test_an_unknown_target_or_message_is_not_found(setup: Setup) -> None:
    path = setup.file("f", b"x")
    assert (await setup.error("send-message nowhere --data x"))[0] == "not_found"
    assert (await setup.error("send-message 77 --data x"))[0] == "trust_required"
    assert (await setup.error(f"send-file nowhere {path}"))[0] == "invalid_argument"
    assert (await setup.error("inbox read nothing"))[0] == "not_found"
    assert (await setup.error("received --clear"))[0] == "not_found"


@pytest.mark.timeout(300)
async def test_the_largest_message_passes_and_one_byte_more_does_not(setup: Setup) -> None:
    limit = (64 << 20) - 4096
    path = setup.file("large", bytes(limit))
    sent = await send_much(setup, f"send-message 1 --type binary --data-file {path}")
    assert sent["ack"] == f"ACK BINARY {limit} bytes"
    assert setup.messages()[0]["bytes"] == limit
    path = setup.file("larger", bytes(limit + 1))
    code, text = await setup.error(f"send-message 1 --type binary --data-file {path}")
    expected = (
        f"message is {limit + 1} bytes; one message can carry at most {limit} (use send-file for larger payloads)"
    )
    assert (code, text) == ("invalid_argument", expected)


async def send_much(setup: Setup, words: str) -> dict[str, Any]:
    """Send; the original's daemon gets two more chances, as its streams stop for good now and then when much is to be sent."""
    for _ in range(0 if setup.daemon == "ours" else 2):
        with trio.move_on_after(MUCH_TIMEOUT):
            result = await setup.ctl(*words.split())
            if result.returncode == 0:
                return comparable(result)
    return await setup.data(words)


async def test_the_inbox_is_listed_filtered_read_and_cleared(make_go_home: MakeHome) -> None:
    long = "word \t\n" * 40
    async with open_setup(make_go_home, ("pilotctl", "ours")) as setup:
        assert (await setup.data("inbox"))["total"] == 0
        for text in ("first", "second", long):
            await setup.ctl("send-message", "1", "--data", text)
        ours = Setup(setup.home, CTL)
        entry = (await setup.data("inbox"))["messages"][0]["id"]
        for words in (
            "inbox",
            "inbox --latest",
            "inbox --limit 2",
            "inbox --limit 0",
            "inbox --full",
            "inbox --from 1",
            "inbox --from alpha",
            "inbox --from 9",
            "inbox --since 1h",
            "inbox --since 0s",
            "inbox --since 2100-01-01T00:00:00Z",
            "inbox --since 2001-01-01T00:00:00Z --limit 1",
            f"inbox read {entry}",
            "inbox --clear --before 1h",
            "inbox --clear --from 9",
        ):
            assert await ours.data(words) == await setup.data(words), words
        assert await ours.data("inbox --clear") == {"cleared": 3, "remaining": 0}
        assert await setup.data("inbox") == await ours.data("inbox")


async def test_files_arrive_whole_and_are_listed(setup: Setup) -> None:
    content = os.urandom(300_000)
    path = setup.file("big.bin", content)
    sent = await setup.data(f"send-file 1 {path}")
    assert sent.pop("elapsed_ms") >= 0 and sent.pop("throughput_mbps") > 0
    assert sent == {
        "filename": "big.bin", "bytes": 300_000, "bytes_sent": 300_000, "bytes_resumed": 0, "destination": OWN,
        "sha256": hashlib.sha256(content).hexdigest(), "transport": "filestream", "verified": True,
    }  # fmt: skip
    whole = await setup.data(f"send-file 1 {path} --no-stream")
    assert whole["ack"] == "ACK FILE 300000 bytes"
    assert whole.keys() == {"filename", "bytes", "destination", "elapsed_ms", "throughput_mbps", "ack"}
    empty = await setup.data(f"send-file 1 {setup.file('empty', b'')}")
    assert (empty["bytes"], empty["verified"]) == (0, True)
    listed = await setup.data("received")
    assert [(row["bytes"], row["name"].split("-")[0]) for row in listed["files"]] == [
        (0, "empty"),
        (300_000, "big"),
        (300_000, "big"),
    ]
    assert {Path(row["path"]).read_bytes() for row in listed["files"]} == {content, b""}
    assert (listed["total"], listed["shown"], listed["dir"]) == (3, 3, str(setup.received))
    assert (await setup.data("received --limit 1"))["shown"] == 1
    assert (await setup.data("received --since 0s"))["total"] == 0
    assert await setup.data("received --clear") == {"cleared": 3, "cleared_partial": 0, "remaining": 0}


async def test_an_interrupted_file_continues_where_it_was(setup: Setup) -> None:
    content = os.urandom(200_000)
    partial = setup.received / ".partial" / hashlib.sha256(content).digest()[:16].hex()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content[:100_000])  # what a transfer leaves behind that broke
    sent = await setup.data(f"send-file 1 {setup.file('again.bin', content)}")
    assert (sent["bytes_resumed"], sent["bytes_sent"], sent["verified"]) == (100_000, 100_000, True)
    (row,) = (await setup.data("received"))["files"]
    assert Path(row["path"]).read_bytes() == content
    assert not partial.exists()


async def test_a_partial_file_with_other_bytes_is_found_out(setup: Setup) -> None:
    content = os.urandom(100_000)
    partial = setup.received / ".partial" / hashlib.sha256(content).digest()[:16].hex()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(50_000))
    code, text = await setup.error(f"send-file 1 {setup.file('bad.bin', content)}")
    assert code == "connection_failed"
    assert "sha256 mismatch — file corrupt, .partial retained" in text
    assert list(setup.received.glob("bad*")) == []


async def test_a_file_that_exceeds_the_quota_is_refused(setup: Setup) -> None:
    setup.received.mkdir(parents=True)
    with (setup.received / "old.bin").open("wb") as file:
        file.truncate((2 << 30) - 10)  # takes no place on the disk
    code, text = await setup.error(f"send-file 1 {setup.file('f', bytes(11))}")
    assert code == "connection_failed"
    assert "receiver disk quota exceeded: need 11, 10 of 2147483648 available" in text
    assert (await setup.error(f"send-file 1 {setup.file('f', bytes(11))} --no-stream"))[0] == "internal"
    assert (await setup.data(f"send-file 1 {setup.file('g', bytes(10))}"))["verified"] is True


@asynccontextmanager
async def subscribed(setup: Setup, *words: str) -> AsyncGenerator[tuple[trio.Process, list[bytes]], None]:
    """Run `subscribe` until the end of the block; give the process and the lines it printed so far."""
    process = await trio.lowlevel.open_process(
        [*setup.program, "--json", "subscribe", OWN, *words],
        stdout=subprocess.PIPE,
        env=setup.home.environment,
    )
    lines: list[bytes] = []

    async def read() -> None:
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *complete, rest = (rest + chunk).split(b"\n")
            lines.extend(complete)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        try:
            yield process, lines
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def publish_until(setup: Setup, topic: str, data: str, happened: Callable[[], bool]) -> None:
    """Publish again and again: nobody tells when a subscription is in force."""
    with trio.fail_after(60):
        while not happened():
            assert await setup.data(f"publish 1 {topic} --data {data}") == {"target": OWN, "topic": topic, "bytes": 1}


@pytest.mark.parametrize("subscription", ["weather", "*"])
async def test_events_reach_who_asked_for_them(setup: Setup, subscription: str) -> None:
    async with subscribed(setup, subscription, "--count", "2") as (process, lines):
        await publish_until(setup, "weather", "x", lambda: process.poll() is not None)
        assert await process.wait() == 0
    event = {"topic": "weather", "data": "x", "bytes": 1}
    assert json.loads(lines[0]) == {"status": "ok", "data": {"events": [event, event], "timeout": False}}


async def test_events_without_count_are_bare_lines(setup: Setup) -> None:
    async with subscribed(setup, "t") as (_, lines):
        await publish_until(setup, "t", "y", lambda: len(lines) >= 2)
    assert [json.loads(line) for line in lines[:2]] == [{"topic": "t", "data": "y", "bytes": 1}] * 2


async def test_a_subscription_ends_quietly_at_its_timeout(setup: Setup) -> None:
    done = await setup.ctl("subscribe", "1", "t", "--timeout", "200ms")
    assert (done.returncode, done.output) == (0, "")
    data = await setup.data("subscribe 1 t --count 1 --timeout 200ms")
    assert (data["events"] or [], data["timeout"]) == ([], True)


@pytest.mark.parametrize("daemon", ["go", "ours"])
async def test_names_and_times_are_in_the_local_zone(make_go_home: MakeHome, daemon: str) -> None:
    async with open_setup(make_go_home, ("pilotctl", daemon), TZ="Asia/Tokyo") as setup:
        await setup.data("send-message 1 --data hi")
        (path,) = setup.inbox.iterdir()
        received_at = json.loads(path.read_bytes())["received_at"]
        assert received_at.endswith("+09:00")
        moment = received_at[:19].replace("-", "").replace(":", "").replace("T", "-")
        assert path.name.startswith(f"TEXT-{moment}.")


@pytest.mark.parametrize("pair", PAIRS, ids=["-on-".join(pair) for pair in PAIRS])
async def test_the_environment_sets_the_frame_limit_of_both_sides(
    make_go_home: MakeHome, pair: tuple[str, str]
) -> None:
    async with open_setup(make_go_home, pair, PILOT_DATAEXCHANGE_MAX_FRAME="65536") as setup:
        most = 65_536 - 4096
        sent = await setup.data(f"send-message 1 --data-file {setup.file('m', bytes(most))}")
        assert sent["bytes"] == most
        code, text = await setup.error(f"send-message 1 --data-file {setup.file('n', bytes(most + 1))}")
        assert (code, f"at most {most}" in text) == ("invalid_argument", True)
        assert (await setup.error(f"send-file 1 --no-stream {setup.file('f', bytes(65_537))}"))[0] == "invalid_argument"
        # A sender that does not know of the limit is hung up on. What the command lines call that differs.
        del setup.home.environment["PILOT_DATAEXCHANGE_MAX_FRAME"]
        await setup.error(f"send-file 1 --no-stream {setup.file('f', bytes(65_537))}")
        assert list(setup.received.glob("f*")) == []
