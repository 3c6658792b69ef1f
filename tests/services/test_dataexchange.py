from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.services import dataexchange as service
from pilot_trio.services import filestream as filestream_service
from pilot_trio.services import mailbox as mailbox_module
from pilot_trio.services.dataexchange import DataExchange
from pilot_trio.services.mailbox import Mailbox
from pilot_trio.services.reading import ExactReader
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire import filestream
from pilot_trio.wire.filestream import Kind

from .streams import serving

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "services.json").read_text())["data_exchange"]
Event = tuple[str, dict[str, Any]]


class Peer:
    """The other end of a connection to the service."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._reader = ExactReader(stream)

    async def send(self, frame_type: int, payload: bytes) -> None:
        await self.stream.send_all(wire.encode_frame(frame_type, payload))

    async def reply(self) -> tuple[int, bytes] | None:
        header = await self._reader.exactly(8, stall_timeout=5)
        if header is None:
            return None
        frame_type, length = wire.HEADER.unpack(header)
        payload = await self._reader.exactly(length, stall_timeout=5)
        assert payload is not None
        return frame_type, payload

    async def ask(self, frame_type: int, payload: bytes) -> tuple[int, bytes] | None:
        await self.send(frame_type, payload)
        return await self.reply()

    async def stream_message(self, payload: bytes) -> filestream.StreamMessage:
        answer = await self.ask(7, payload)
        assert answer is not None
        assert answer[0] == 7
        return filestream.decode(answer[1])


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def exchange(mailbox: Mailbox, events: list[Event]) -> DataExchange:
    return DataExchange(mailbox, lambda topic, data: events.append((topic, data)))


def inbox(mailbox: Mailbox) -> list[dict[str, Any]]:
    files = sorted(mailbox.inbox.glob("*.json"), key=lambda path: path.name.partition("-")[2])
    return [json.loads(path.read_bytes()) for path in files]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["name"])
async def test_recorded_frames_get_the_recorded_replies(exchange: DataExchange, vector: dict[str, Any]) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        if vector["name"] == "tag dup":
            await peer.stream.send_all(bytes.fromhex(vector["sent_hex"][0]))
            await peer.reply()
        for sent in vector["sent_hex"]:
            await stream.send_all(bytes.fromhex(sent))
        for expected in vector["replies"]:
            reply = await peer.reply()
            if expected.get("stream_closed"):
                assert reply is None
                continue
            assert reply is not None
            assert reply[0] == expected["type"]
            recorded = bytes.fromhex(expected["payload_hex"])
            if reply[0] == wire.FrameType.JSON:
                got, want = json.loads(reply[1]), json.loads(recorded)
                assert list(got) == list(want)
                assert got["inner_ack"] == want["inner_ack"]
                assert got["sent_at_ns"] == want["sent_at_ns"]
            else:
                assert reply[1] == recorded


async def test_a_message_becomes_the_recorded_inbox_file(
    exchange: DataExchange, mailbox: Mailbox, events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recorded = json.loads(VECTORS["captured_cli_send_message"]["inbox_file_text"])
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        await stream.send_all(bytes.fromhex(VECTORS["captured_cli_send_message"]["sent_hex"]))
        assert await peer.reply() == (1, b"ACK TEXT 7 bytes")
    (path,) = mailbox.inbox.glob("*.json")
    assert re.fullmatch(r"TEXT-\d{8}-\d{6}\.\d{3}-000001\.json", path.name)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(json.loads(path.read_bytes())) == sorted(recorded)
    assert json.loads(path.read_bytes()) | {"received_at": ""} == recorded | {"received_at": ""}
    assert events == [
        (
            "message.received",
            {"from": recorded["from"], "size": 7, "type": "TEXT", "message_id": recorded["message_id"]},
        )
    ]
    (line,) = (record for record in caplog.records if record.message == "inbox message saved")
    said = {"path": str(path), "type": "TEXT", "bytes": 7, "message_id": recorded["message_id"]}
    assert line.__dict__["kv"] == said


async def test_bytes_that_are_no_text_arrive_as_base64(exchange: DataExchange, mailbox: Mailbox) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        assert await peer.ask(1, b"\xff\xfe") == (1, b"ACK TEXT 2 bytes")
        assert await peer.ask(2, b"text") == (1, b"ACK BINARY 4 bytes")
    first, second = inbox(mailbox)
    assert (first["data_encoding"], first["data_b64"]) == ("base64", "//4=")
    assert (second["data_encoding"], second["data_b64"]) == ("base64", "dGV4dA==")


async def test_a_repeated_message_is_stored_once_until_it_is_forgotten(
    exchange: DataExchange, mailbox: Mailbox, mock_clock: trio.testing.MockClock
) -> None:
    frame = wire.encode_tagged(1, b"hello", message_id="m1")
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for expected in (b"ACK TEXT 5 bytes", b"ACK TEXT 5 bytes (duplicate)"):
            await stream.send_all(frame)
            assert await peer.reply() == (1, expected)
        assert len(inbox(mailbox)) == 1
    mock_clock.jump(service.DEDUPLICATION_TIME + 1)
    async with serving(exchange.handle) as stream:
        await stream.send_all(frame)
        assert await Peer(stream).reply() == (1, b"ACK TEXT 5 bytes")
    assert len(inbox(mailbox)) == 2


async def test_eight_thousand_messages_are_recognised_and_the_oldest_is_forgotten_for_one_more(
    exchange: DataExchange, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []

    async def store(tagged: wire.Tagged, sender: str) -> str:
        stored.append(tagged.message_id)
        return "ACK TEXT 1 bytes"

    monkeypatch.setattr(exchange, "_store", store)  # files take longer than this is worth
    names = [f"m{number}" for number in range(8192)]
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for name in [*names, names[0], "one-more", names[0]]:
            await stream.send_all(wire.encode_tagged(1, b"x", message_id=name))
            await peer.reply()
    assert stored == [*names, "one-more", names[0]]


async def test_two_connections_that_deliver_the_same_message_store_it_once(
    exchange: DataExchange, mailbox: Mailbox
) -> None:
    frame = wire.encode_tagged(1, b"hello", message_id="m1")
    async with serving(exchange.handle) as one, serving(exchange.handle) as two:
        await one.send_all(frame)
        await two.send_all(frame)
        answers = {await Peer(one).reply(), await Peer(two).reply()}
    assert answers == {(1, b"ACK TEXT 5 bytes"), (1, b"ACK TEXT 5 bytes (duplicate)")}
    assert len(inbox(mailbox)) == 1


async def test_a_message_that_could_not_be_stored_is_stored_when_repeated(
    exchange: DataExchange, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = wire.encode_tagged(1, b"hello", message_id="m1")
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        with monkeypatch.context() as patch:
            patch.setattr(mailbox_module, "INBOX_BYTES_MAX", 4)
            await stream.send_all(frame)
            reply = await peer.reply()
            assert reply is not None
            assert reply[1].startswith(b"ERR TEXT save failed: inbox byte budget exceeded: ")
        await stream.send_all(frame)
        assert await peer.reply() == (1, b"ACK TEXT 5 bytes")


async def test_a_full_inbox_loses_its_oldest_messages_and_says_so_for_one_too_large(
    exchange: DataExchange, mailbox: Mailbox, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_module, "INBOX_BYTES_MAX", 3000)
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for index in range(30):
            await peer.ask(1, b"%03d" % index + bytes(97))
        left = [message["data"][:3] for message in inbox(mailbox)]
        assert left == [f"{index:03d}" for index in range(30 - len(left), 30)]
        assert sum(path.stat().st_size for path in mailbox.inbox.iterdir()) <= 3000
        await peer.ask(2, bytes(3000))
    assert events[-1][0] == "inbox.full"


async def test_a_full_inbox_makes_room_for_more_than_one_message(
    exchange: DataExchange, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        await peer.ask(1, b"first")
        size = next(mailbox.inbox.iterdir()).stat().st_size
        monkeypatch.setattr(mailbox_module, "INBOX_BYTES_MAX", 40 * size)
        counts = []
        for _ in range(60):
            await peer.ask(1, b"other")
            counts.append(len(list(mailbox.inbox.iterdir())))
    dropped = [before - after for before, after in itertools.pairwise(counts) if after < before]
    assert 36 <= counts[-1] <= 40
    assert dropped
    assert all(2 <= count <= 4 for count in dropped)  # a tenth of the bytes


async def test_the_inbox_never_holds_more_files_than_its_limit(
    exchange: DataExchange, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_module, "INBOX_FILES_MAX", 5)
    monkeypatch.setattr(mailbox_module, "COUNT_EVERY", 1)
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for index in range(8):
            await peer.ask(1, b"%d" % index)
    assert [message["data"] for message in inbox(mailbox)] == ["3", "4", "5", "6", "7"]


async def test_a_file_is_stored_under_its_name_and_time(
    exchange: DataExchange, mailbox: Mailbox, events: list[Event]
) -> None:
    async with serving(exchange.handle) as stream:
        assert await Peer(stream).ask(4, b"\x00\x05f.txtDATA") == (1, b"ACK FILE 4 bytes")
    (path,) = (path for path in mailbox.received.iterdir())
    assert re.fullmatch(r"f-\d{8}-\d{6}\.\d{3}-000001\.txt", path.name)
    assert path.read_bytes() == b"DATA"
    assert events == [("file.received", {"filename": "f.txt", "path": str(path), "size": 4})]


@pytest.mark.parametrize("vector", VECTORS["received_names"], ids=lambda v: v["sent"])
def test_stored_names_follow_the_recorded_pattern(mailbox: Mailbox, vector: dict[str, str]) -> None:
    sent = vector["sent"].removeprefix("(stream) ").removeprefix("empty name")
    shape = re.sub(r"\d{8}-\d{6}\.\d{3}-\d{6}", "@", vector["stored"])
    assert re.sub(r"\d{8}-\d{6}\.\d{3}-\d{6}", "@", mailbox.final_path(sent).name) == shape


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a." + "y" * 253])
def test_the_longest_names_still_fit_the_disk(mailbox: Mailbox, name: str) -> None:
    path = mailbox.save_file(name, b"")
    assert len(path.name.encode()) <= 255
    assert path.exists()


async def test_a_silent_connection_is_closed_after_its_timeout(
    exchange: DataExchange, autojump_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    async with serving(exchange.handle) as stream:
        await stream.send_all(b"\x00\x00\x00\x01")  # half a header
        assert await stream.receive_some() == b""
    assert trio.current_time() - started == service.IDLE_TIMEOUT


LARGE = wire.HEADER.pack(2, service.LARGE_FRAME + 1)


async def test_no_more_than_the_limit_of_large_frames_is_received_at_once(exchange: DataExchange) -> None:
    async with trio.open_nursery() as nursery:
        streams = [await nursery.start(_hold, exchange, node, LARGE) for node in range(1, service.LARGE_FRAMES_MAX + 2)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(exchange._large) == service.LARGE_FRAMES_MAX
        assert exchange._large.waiting == 1
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert len(exchange._large) == service.LARGE_FRAMES_MAX
        assert exchange._large.waiting == 0
        nursery.cancel_scope.cancel()


async def test_one_node_cannot_keep_others_from_sending_large_frames(exchange: DataExchange, mailbox: Mailbox) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2 * service.LARGE_FRAMES_MAX):
            await nursery.start(_hold, exchange, 1, LARGE)
        async with serving(exchange.handle, node=2) as stream:
            with trio.fail_after(5):
                reply = await Peer(stream).ask(2, bytes(service.LARGE_FRAME + 1))
            assert reply is not None
            assert reply[1].startswith(b"ACK BINARY ")
        assert (len(exchange._large), exchange._large.waiting) == (1, 2 * service.LARGE_FRAMES_MAX - 1)
        nursery.cancel_scope.cancel()


async def test_a_large_frame_that_trickles_in_loses_its_place(
    exchange: DataExchange, autojump_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    async with serving(exchange.handle) as stream, trio.open_nursery() as nursery:
        await stream.send_all(LARGE)
        nursery.start_soon(_trickle, stream)
        assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
    assert len(exchange._large) == 0
    assert trio.current_time() - started < 2 * service.IDLE_TIMEOUT


async def _trickle(stream: trio.abc.Stream) -> None:
    while True:
        await trio.sleep(service.IDLE_TIMEOUT - 1)
        await stream.send_all(b"x")


async def _hold(
    exchange: DataExchange, node: int = 1, first: bytes = b"", *, task_status: trio.TaskStatus[trio.abc.Stream]
) -> None:
    async with serving(exchange.handle, node=node) as stream:
        await stream.send_all(first)
        task_status.started(stream)
        await trio.sleep_forever()


CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).digest()
ID = DIGEST[:16]
INIT = filestream.encode_init(ID, filestream.Init(len(CONTENT), DIGEST, 49_152, "big.bin"))


def chunk(offset: int, size: int = 49_152) -> bytes:
    return filestream.encode_offset(Kind.CHUNK, ID, offset) + CONTENT[offset : offset + size]


def offset_of(message: filestream.StreamMessage) -> int:
    return int.from_bytes(message.body, "big")


async def test_the_recorded_transfer_is_answered_as_recorded(exchange: DataExchange, mailbox: Mailbox) -> None:
    recorded = VECTORS["file_stream"]
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        replies = [step["hex"] for step in recorded["sequence"] if step["dir"] == "<"]
        for step in recorded["sequence"]:
            if step["dir"] == ">":
                await stream.send_all(bytes.fromhex(step["hex"]))
        for hex_reply in replies:
            reply = await peer.reply()
            assert reply is not None
            assert wire.encode_frame(*reply).hex() == hex_reply
    (path,) = mailbox.received.glob("f-*.txt")
    assert path.read_text() == recorded["content_utf8"]


async def test_chunks_in_any_order_make_the_file_and_duplicates_do_no_harm(
    exchange: DataExchange, mailbox: Mailbox
) -> None:
    offsets = list(range(0, len(CONTENT), 49_152))
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        assert (await peer.stream_message(INIT)).kind == Kind.INIT_ACK
        for offset in [*offsets[1:], *offsets[2:3], offsets[0], *offsets]:
            last = await peer.stream_message(chunk(offset))
        assert (last.kind, offset_of(last)) == (Kind.ACK, len(CONTENT))
        assert await peer.stream_message(filestream.encode(Kind.DONE, ID)) == (Kind.COMPLETE, ID, b"\x00")
    (path,) = mailbox.received.glob("big-*.bin")
    assert path.read_bytes() == CONTENT
    assert list(mailbox.partial.iterdir()) == []


async def test_an_interrupted_transfer_resumes_where_it_was(exchange: DataExchange, mailbox: Mailbox) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        assert offset_of(await peer.stream_message(INIT)) == 0
        await peer.stream_message(chunk(0))
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        assert offset_of(await peer.stream_message(INIT)) == 49_152
        await peer.stream_message(chunk(49_152, len(CONTENT)))
        assert (await peer.stream_message(filestream.encode(Kind.DONE, ID))).body == b"\x00"


async def test_comparing_a_file_with_its_hash_keeps_nobody_waiting(
    exchange: DataExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()

    def slow_disk(_path: Path) -> bytes:
        read.wait(100)  # more than the ten times five seconds that the clock of the tests grants a thread
        return DIGEST

    monkeypatch.setattr(filestream_service, "_sha256", slow_disk)
    async with serving(exchange.handle, node=1) as one, serving(exchange.handle, node=2) as two:
        sender = Peer(one)
        await sender.stream_message(INIT)
        await sender.stream_message(chunk(0, len(CONTENT)))
        await sender.send(7, filestream.encode(Kind.DONE, ID))
        with trio.fail_after(5):
            assert await Peer(two).ask(1, b"hello") == (1, b"ACK TEXT 5 bytes")
        read.set()
        reply = await sender.reply()
        assert reply is not None
        assert filestream.decode(reply[1]).body == b"\x00"


async def test_a_second_sender_of_the_same_content_gets_its_own_partial_file(
    exchange: DataExchange, mailbox: Mailbox
) -> None:
    async with serving(exchange.handle) as one, serving(exchange.handle) as two:
        first, second = Peer(one), Peer(two)
        await first.stream_message(INIT)
        await first.stream_message(chunk(0))
        assert offset_of(await second.stream_message(INIT)) == 0
        assert len(list(mailbox.partial.iterdir())) == 2
        await second.stream_message(chunk(0, len(CONTENT)))
        assert (await second.stream_message(filestream.encode(Kind.DONE, ID))).body == b"\x00"
    assert [path.name for path in mailbox.partial.iterdir()] == [ID.hex()]


async def test_a_silent_holder_is_taken_over_and_told_so(
    exchange: DataExchange, mailbox: Mailbox, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(exchange.handle) as one, serving(exchange.handle) as two:
        first, second = Peer(one), Peer(two)
        await first.stream_message(INIT)
        await first.stream_message(chunk(0))
        mock_clock.jump(filestream_service.TAKEOVER_AFTER)
        assert offset_of(await second.stream_message(INIT)) == 49_152
        late = await first.stream_message(chunk(49_152))
        assert (late.kind, late.body) == (Kind.COMPLETE, b"\x01no active transfer")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [INIT, filestream.encode_offset(Kind.CHUNK, ID, 256_000) + b"x"],
            "chunk at 256000 of 1 bytes exceeds declared size 256000",
        ),
        ([INIT, chunk(0), filestream.encode(Kind.DONE, ID)], "incomplete: have 49152 of 256000 bytes"),
        ([b"\x01" + bytes(16)], "malformed stream frame"),
        ([INIT, filestream.encode(Kind.CHUNK, ID, b"1234567")], "malformed CHUNK"),
        (
            [filestream.encode_init(ID, filestream.Init(3 << 30, DIGEST, 49_152, "x"))],
            "receiver disk quota exceeded: need 3221225472, 2147483648 of 2147483648 available",
        ),
    ],
)
async def test_a_transfer_that_cannot_go_on_is_refused_with_the_reason(
    exchange: DataExchange, messages: list[bytes], text: str
) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for message in messages:
            answer = await peer.stream_message(message)
        assert answer.kind == Kind.COMPLETE
        assert answer.body == b"\x01" + text.encode()


@pytest.mark.parametrize(("short", "refused"), [(0, False), (1, True)])
async def test_a_transfer_leaves_sixteen_mebibytes_of_the_disk_free(
    exchange: DataExchange, monkeypatch: pytest.MonkeyPatch, short: int, refused: bool
) -> None:
    free = (16 << 20) + 256_000 - short
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    async with serving(exchange.handle) as stream:
        answer = await Peer(stream).stream_message(INIT)
    assert (answer.kind == Kind.COMPLETE) is refused
    if refused:
        assert answer.body.decode() == (
            f"\x01receiver disk full: need 256000 bytes, {free} free (keeping 16777216 in reserve)"
        )


async def test_content_that_does_not_match_its_hash_is_not_delivered(exchange: DataExchange, mailbox: Mailbox) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        await peer.stream_message(filestream.encode_init(ID, filestream.Init(4, DIGEST, 49_152, "x")))
        await peer.stream_message(filestream.encode_offset(Kind.CHUNK, ID, 0) + b"evil")
        answer = await peer.stream_message(filestream.encode(Kind.DONE, ID))
        assert answer.body.decode() == "\x01sha256 mismatch — file corrupt, .partial retained"
    assert list(mailbox.received.glob("x-*")) == []


async def test_one_connection_may_not_open_a_transfer_too_many(exchange: DataExchange) -> None:
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        for index in range(filestream_service.TRANSFERS_MAX + 1):
            transfer_id = (index + 1).to_bytes(16, "big")
            init = filestream.Init(10, DIGEST, 49_152, "x")
            answer = await peer.stream_message(filestream.encode_init(transfer_id, init))
            expected = Kind.INIT_ACK if index < filestream_service.TRANSFERS_MAX else Kind.COMPLETE
            assert answer.kind == expected
        assert answer.body == b"\x01too many concurrent transfers"


async def test_chunks_that_come_far_too_early_are_bounded(exchange: DataExchange) -> None:
    size = 40 * 49_152
    async with serving(exchange.handle) as stream:
        peer = Peer(stream)
        await peer.stream_message(filestream.encode_init(ID, filestream.Init(size, DIGEST, 49_152, "x")))
        for index in range(1, 20):
            body = filestream.encode_offset(Kind.CHUNK, ID, index * 49_152) + bytes(49_152)
            assert offset_of(await peer.stream_message(body)) == 0
        answer = await peer.stream_message(filestream.encode_offset(Kind.CHUNK, ID, 0) + bytes(49_152))
        assert offset_of(answer) == 17 * 49_152  # this one and the 16 that there was room for


async def test_cancelling_a_connection_leaves_nothing_private_behind(exchange: DataExchange, mailbox: Mailbox) -> None:
    async with serving(exchange.handle) as one:
        first = Peer(one)
        await first.stream_message(INIT)
        async with trio.open_nursery() as nursery:
            second = Peer(await nursery.start(_hold, exchange))
            await second.stream_message(INIT)
            assert len(list(mailbox.partial.iterdir())) == 2
            nursery.cancel_scope.cancel()
    assert [path.name for path in mailbox.partial.iterdir()] == [ID.hex()]
