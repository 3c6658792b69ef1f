from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.endpoint_file import (
    LOOK_INTERVAL,
    SAVE_INTERVAL,
    SAVE_SHARE,
    decode_rows,
    encode_rows,
    keep_endpoints,
    load_endpoints,
)
from pilot_trio.rendezvous.endpoint_table import ENTRY_TTL, EndpointTable, Row

ONE, TWO = NodeId(1), NodeId(2)
HERE, THERE = Endpoint("192.0.2.1", 4001), Endpoint("2001:db8::1", 4002)

rows = st.lists(
    st.builds(
        Row,
        st.integers(1, 0xFFFFFFFF),
        st.builds(Endpoint, st.sampled_from([HERE.host, THERE.host]), st.integers(1, 0xFFFF)),
        st.integers(0, 600).map(float),
        st.booleans(),
    )
)


@given(rows)
def test_rows_survive(rows: list[Row]) -> None:
    assert decode_rows(encode_rows(rows, 1000.0), 1000.0) == rows


@given(st.binary(max_size=200) | st.sampled_from([b"[]", b"{}", b"1", b'{"saved_at":1,"nodes":[1]}', b"[" * 5000]))
def test_garbage_is_a_value_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_rows(data, 0.0)


@pytest.mark.parametrize(
    "row",
    [
        '[0,"192.0.2.1",1,0,false]',
        '[4294967296,"192.0.2.1",1,0,false]',
        '[1,"no address",1,0,false]',
        '[1,"192.0.2.1",0,0,false]',
        '[1,"192.0.2.1",65536,0,false]',
        '[1,"192.0.2.1",1,"old",false]',
        '[1,"192.0.2.1",1,0]',
        '[true,"192.0.2.1",1,0,false]',
    ],
)
def test_bad_rows(row: str) -> None:
    with pytest.raises(ValueError):
        decode_rows(b'{"saved_at":1,"nodes":[%s]}' % row.encode(), 0.0)


async def test_a_table_comes_back_as_old_as_it_is_by_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    before = EndpointTable()
    before.note(ONE, HERE, trio.current_time())
    await trio.sleep(400)
    before.note(TWO, THERE, trio.current_time(), multi=True)
    (tmp_path / "e").write_bytes(encode_rows(before.rows(trio.current_time()), 5000.0))
    after = EndpointTable()
    await load_endpoints(after, tmp_path / "e", lambda: 5100.0)
    now = trio.current_time()
    entry = after.entry(TWO, now)
    assert after.find(ONE, now) == HERE
    assert entry is not None and entry.endpoint == THERE and entry.multi
    assert after.find(ONE, now + 100) is None  # 400 and 100 before, and these 100
    late = EndpointTable()
    await load_endpoints(late, tmp_path / "e", lambda: 5000.0 + ENTRY_TTL)
    assert len(late) == 0
    clock_set_back = EndpointTable()
    await load_endpoints(clock_set_back, tmp_path / "e", lambda: 0.0)
    assert len(clock_set_back) == 2


async def test_news_of_after_the_start_is_worth_more_than_the_file(autojump_clock: MockClock) -> None:
    table = EndpointTable(max_nodes=2)
    table.note(ONE, THERE, 0.0)
    table.restore([Row(1, HERE, 0.0, False), Row(2, HERE, 5.0, False)], 0.0)
    assert (table.find(ONE, 0.0), table.find(TWO, 0.0)) == (THERE, HERE)


@pytest.mark.parametrize("content", [None, b"torn"])
async def test_without_a_usable_file_the_table_is_empty(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "e").write_bytes(content)
    table = EndpointTable()
    await load_endpoints(table, tmp_path / "e", lambda: 0.0)
    assert len(table) == 0
    assert ("not restored" in caplog.text) == (content is not None)


class Saves:
    """Counts saves in the place of a disk, and takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, duration: float = 0.0) -> None:
        self.times: list[float] = []
        self.duration = duration
        monkeypatch.setattr("pilot_trio.rendezvous.endpoint_file._save", self.save)

    async def save(self, table: EndpointTable, path: Path, unix_now: float) -> None:
        self.times.append(trio.current_time())
        await trio.sleep(self.duration)


async def test_a_node_that_is_new_or_has_moved_is_saved_at_once_others_now_and_then(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, table = Saves(monkeypatch), EndpointTable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_endpoints, table, Path("e"), lambda: 7.0)
        for endpoint in (HERE, THERE):
            await trio.sleep(5)
            at = trio.current_time()
            table.note(ONE, endpoint, at)
            await trio.sleep(5)
            assert at <= saves.times[-1] <= at + LOOK_INTERVAL
        count, at = len(saves.times), trio.current_time()
        while trio.current_time() < at + 10 * SAVE_INTERVAL:
            table.note(ONE, THERE, trio.current_time())
            await trio.sleep(1)
        assert 8 <= len(saves.times) - count <= 10
        nursery.cancel_scope.cancel()


async def test_saving_takes_its_share_of_the_time_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, table = Saves(monkeypatch, duration=0.5), EndpointTable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_endpoints, table, Path("e"), lambda: 7.0)
        for node in range(1, 200):
            table.note(NodeId(node), HERE, trio.current_time())
            await trio.sleep(0.5)
        assert 2 <= len(saves.times) <= 100 / (0.5 / SAVE_SHARE) + 1
        nursery.cancel_scope.cancel()


async def test_news_is_saved_now_and_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "e"
    table = EndpointTable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_endpoints, table, path, lambda: 7.0)
        await trio.sleep(2 * SAVE_INTERVAL)
        assert not path.exists()  # nothing to say
        table.note(ONE, HERE, trio.current_time())
        while not path.exists():  # noqa: ASYNC110 - time is virtual, the disk is not
            await trio.sleep(SAVE_INTERVAL)
        assert [row.node for row in decode_rows(path.read_bytes(), 7.0)] == [1]
        nursery.cancel_scope.cancel()


async def test_what_is_new_at_the_end_is_saved_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot_trio.rendezvous.endpoint_file.FINAL_SAVE_TIMEOUT", 10.0)
    table = EndpointTable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_endpoints, table, tmp_path / "e", lambda: 7.0)
        await wait_all_tasks_blocked()
        table.note(ONE, HERE, trio.current_time())
        nursery.cancel_scope.cancel()
    assert [row.node for row in decode_rows((tmp_path / "e").read_bytes(), 7.0)] == [1]


async def test_a_disk_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pilot_trio.rendezvous.endpoint_file.FINAL_SAVE_TIMEOUT", 10.0)
    (tmp_path / "file").write_bytes(b"")
    table = EndpointTable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_endpoints, table, tmp_path / "file" / "e", lambda: 0.0)
        await wait_all_tasks_blocked()
        table.note(ONE, HERE, trio.current_time())
        nursery.cancel_scope.cancel()
    assert "not saved" in caplog.text
