"""The store keeps what it has confirmed: through kills, torn logs and full disks, and refuses files it cannot keep."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from pilot_trio.errors import ConfigError, StoreError
from pilot_trio.proto.directory import Change, DirectorySettings, PeerInfo
from pilot_trio.rendezvous import database as database_module
from pilot_trio.rendezvous import store as store_module
from pilot_trio.rendezvous.database import APPLICATION_ID, SCHEMA_VERSION, Database
from pilot_trio.rendezvous.store import Store, open_store

CHILD = Path(__file__).with_name("store_child.py")


def change(key: int, value: int | None = 0) -> Change:
    return Change("nodes", str(key), None if value is None else {"value": value})


async def rows_of(path: Path) -> dict[str, int]:
    async with open_store(path) as store:
        return {key: row["value"] for _, key, row in await store.load()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def test_what_was_committed_is_loaded_in_the_order_of_first_writing(path: Path) -> None:
    async with open_store(path) as store:
        assert await store.load() == []
        await store.commit([change(10, 1), change(9, 2), Change("trust", "1:2", {})])
        await store.commit([change(10, 3), change(8, 4)])
    async with open_store(path) as store:
        assert await store.load() == [
            ("nodes", "10", {"value": 3}),
            ("nodes", "9", {"value": 2}),
            ("trust", "1:2", {}),
            ("nodes", "8", {"value": 4}),
        ]


async def test_deleted_rows_are_gone(path: Path) -> None:
    async with open_store(path) as store:
        await store.commit([change(1), change(2)])
        await store.commit([change(1, None), change(7, None)])
    assert await rows_of(path) == {"2": 0}


async def test_without_a_file_nothing_is_kept_and_nothing_waits() -> None:
    async with open_store(None) as store:
        with trio.fail_after(1):
            await store.commit([change(1)])
        assert await store.load() == []
        assert not store.statistics().persistent


async def test_any_text_survives(path: Path) -> None:
    row = {"name": "\0 ' \U0001f600 \ud800", "nested": [{"a": None}, 1.5, True]}
    async with open_store(path) as store:
        await store.commit([Change("nonces", "a'b\0c", row)])
    async with open_store(path) as store:
        assert await store.load() == [("nonces", "a'b\0c", row)]


async def test_those_who_wait_share_a_transaction(path: Path) -> None:
    async with open_store(path) as store:
        async with trio.open_nursery() as nursery:
            for key in range(200):
                nursery.start_soon(store.commit, [change(key, key)])
        statistics = store.statistics()
    assert statistics.rows == 200
    assert statistics.transactions <= 3
    assert len(await rows_of(path)) == 200


async def test_an_empty_commit_waits_for_what_is_on_its_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    entered, leave = trio.Event(), trio.Event()
    real_write = Database.write

    def slow_write(self: Database, number: int, changes: list[Change]) -> None:
        trio.from_thread.run_sync(entered.set)
        trio.from_thread.run(leave.wait)
        real_write(self, number, changes)

    async def commit(store: Store, name: str, *changes: Change) -> None:
        await store.commit(changes)
        order.append(name)

    monkeypatch.setattr(Database, "write", slow_write)
    async with open_store(path) as store:
        await store.commit([])  # nothing on its way: at once
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, store, "first", change(1))
            await entered.wait()
            nursery.start_soon(commit, store, "repeated")
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            leave.set()
        assert sorted(order) == ["first", "repeated"]


async def test_a_cancelled_commit_is_written_all_the_same(path: Path) -> None:
    async with open_store(path) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.commit([change(1, 5)])
        await store.commit([])
    assert await rows_of(path) == {"1": 5}


async def test_leaving_writes_what_was_handed_over(path: Path) -> None:
    async with open_store(path) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.commit([change(1, 5)])
    assert await rows_of(path) == {"1": 5}


async def test_errors_of_the_block_pass_unchanged(path: Path) -> None:
    async def fail() -> None:
        async with open_store(path) as store:
            await store.commit([change(1)])
            raise OSError("port in use")

    with pytest.raises(OSError, match="port in use"):
        await fail()
    assert await rows_of(path) == {"1": 0}


async def test_cancelled_in_the_middle_of_a_write_keeps_the_newest_rows(path: Path) -> None:
    begun: list[int] = []

    async def commit(store: Store, value: int) -> None:
        begun.append(value)
        await store.commit([change(1, value), change(2, value)])

    for _ in range(20):
        with trio.CancelScope() as scope:
            async with open_store(path) as store, trio.open_nursery() as nursery:
                for value in range(50):
                    nursery.start_soon(commit, store, value)
                    if value == 25:
                        await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                scope.cancel()
        assert await rows_of(path) == {"1": begun[-1], "2": begun[-1]}


async def test_a_closed_store_refuses(path: Path) -> None:
    async with open_store(path) as store:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await store.commit([change(1)])


async def test_a_failing_disk_confirms_nothing_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True
    real_write = Database.write

    def write(self: Database, number: int, changes: list[Change]) -> None:
        if broken:
            raise sqlite3.OperationalError("database or disk is full")
        real_write(self, number, changes)

    monkeypatch.setattr(Database, "write", write)
    async with open_store(path) as store:
        with pytest.raises(StoreError, match=r"cannot write .*store\.db: database or disk is full"):
            await store.commit([change(1, 1), change(2, 1)])
        assert store.statistics().unwritten == 2
        with pytest.raises(StoreError):
            await store.commit([change(2, 2)])
        broken = False
        await store.commit([change(3, 3)])
        statistics = store.statistics()
    assert (statistics.failures, statistics.unwritten) == (2, 0)
    assert await rows_of(path) == {"1": 1, "2": 2, "3": 3}


async def test_an_empty_commit_tries_again_what_the_disk_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = ["disk I/O error"] * 2
    real_write = Database.write

    def write(self: Database, number: int, changes: list[Change]) -> None:
        if failures:
            raise sqlite3.OperationalError(failures.pop())
        real_write(self, number, changes)

    monkeypatch.setattr(Database, "write", write)
    async with open_store(path) as store:
        for changes in ([change(1)], []):
            with pytest.raises(StoreError):
                await store.commit(changes)
        await store.commit([])
        assert store.statistics().unwritten == 0
    assert await rows_of(path) == {"1": 0}


async def test_a_failure_reaches_everybody_who_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def write(_self: Database, number: int, _changes: list[Change]) -> None:
        attempts.append(number)
        raise sqlite3.OperationalError("disk I/O error")

    failed: list[int] = []

    async def commit(store: Store, key: int) -> None:
        try:
            await store.commit([change(key)])
        except StoreError:
            failed.append(key)

    monkeypatch.setattr(Database, "write", write)
    async with open_store(path) as store, trio.open_nursery() as nursery:
        for key in range(50):
            nursery.start_soon(commit, store, key)
    assert sorted(failed) == list(range(50))
    assert len(attempts) <= 3  # with the one at the end


async def test_when_the_writer_is_cancelled_the_next_one_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = trio.Event(), trio.Event()
    real_write = Database.write
    token = trio.lowlevel.current_trio_token()

    def slow_first_write(self: Database, number: int, changes: list[Change]) -> None:
        if number == 1:
            trio.from_thread.run_sync(entered.set, trio_token=token)
            trio.from_thread.run(leave.wait, trio_token=token)
        real_write(self, number, changes)

    monkeypatch.setattr(Database, "write", slow_first_write)
    async with open_store(path) as store:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def cancelled() -> None:
                with scope:
                    await store.commit([change(1, 1)])

            nursery.start_soon(cancelled)
            await entered.wait()
            nursery.start_soon(store.commit, [change(2, 2)])
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        assert store.statistics().transactions == 1
        assert await store.load() == [("nodes", "1", {"value": 1}), ("nodes", "2", {"value": 2})]
        leave.set()
    assert await rows_of(path) == {"1": 1, "2": 2}


async def test_a_batch_that_comes_late_overwrites_nothing(path: Path) -> None:
    database = Database(path)
    database.write(2, [change(1, 2)])
    database.write(1, [change(1, 1)])
    assert database.load() == [("nodes", "1", {"value": 2})]
    database.close()


async def test_a_transaction_is_whole_or_not_at_all(path: Path) -> None:
    database = Database(path)
    database.write(1, [change(1, 1)])
    unwritable = Change("nodes", "2", {"value": object()})
    with pytest.raises(TypeError):
        database.write(2, [change(1, 2), unwritable])
    database.write(3, [change(3, 3)])
    database.close()
    assert await rows_of(path) == {"1": 1, "3": 3}


def test_the_file_is_private(path: Path) -> None:
    old = os.umask(0)
    try:
        database = Database(path)
        database.write(1, [change(1)])
        files = sorted(path.parent.iterdir())
        modes = {stat.S_IMODE(file.stat().st_mode) for file in files}
        database.close()
    finally:
        os.umask(old)
    assert len(files) == 2  # the file and its log
    assert modes == {0o600}


def test_commits_are_synced(path: Path) -> None:
    database = Database(path)
    assert database._pragma("synchronous") == 2  # FULL
    database.close()


# --- files that cannot be used ---


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught, closing(Database(path)) as database:
        database.load()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "is a directory; name a file in it" in refusal(tmp_path)


def test_missing_parent_is_refused(tmp_path: Path) -> None:
    assert "No such file or directory; create its directory" in refusal(tmp_path / "missing" / "store.db")


def test_unwritable_place_is_refused() -> None:
    assert "choose another --store" in refusal(Path("/proc/self/store.db"))


def test_garbage_is_refused_as_damaged(path: Path) -> None:
    path.write_bytes(b"no database at all " * 100)
    assert "is damaged" in refusal(path)
    assert path.read_bytes().startswith(b"no database")  # and left as it is


def test_another_programs_database_is_refused_untouched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (x)")
    connection.close()
    assert "another program's database" in refusal(path)
    with sqlite3.connect(path) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")] == ["precious"]
    connection.close()


def test_newer_layout_is_refused(path: Path) -> None:
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    assert f"written by a newer version (layout {SCHEMA_VERSION + 1})" in refusal(path)


def test_row_that_is_not_json_is_refused_as_damaged(path: Path) -> None:
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO records VALUES ('nodes', '1', '{')")
    connection.commit()
    connection.close()
    assert "is damaged (a row is not JSON" in refusal(path)


async def test_rows_that_are_no_directorys_are_refused_as_damaged(path: Path) -> None:
    async with open_store(path) as store:
        await store.commit([Change("nodes", "1", {"node_id": 1})])
        with pytest.raises(ConfigError, match=r"store\.db is damaged \(stored row nodes/1: .*\); restore a backup"):
            await store.load_directory(DirectorySettings(), now=0)


async def test_directory_without_rows_or_file_is_empty(path: Path) -> None:
    for place in (path, None):
        async with open_store(place) as store:
            directory = await store.load_directory(DirectorySettings(), now=0)
            assert directory.counts().node_ids == 0


def test_damaged_pages_are_noticed_at_the_start(path: Path) -> None:
    database = Database(path)
    database.write(1, [change(key, key) for key in range(2000)])
    database.close()
    with path.open("r+b") as file:
        for page in range(4, 12):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    assert "is damaged" in refusal(path)


def test_second_registry_over_one_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
    first = Database(path)
    assert "is in use by another process" in refusal(path)
    first.close()
    Database(path).close()


def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    database = Database(path)
    assert database._pragma("application_id") == APPLICATION_ID
    database.close()


# --- kill -9 ---


def run_and_kill(program: str, path: Path, confirmations: int) -> list[str]:
    """Run one of the child's programs until it has confirmed that much, kill it, and return all that it has confirmed."""
    with subprocess.Popen([sys.executable, str(CHILD), program, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        confirmed = [child.stdout.readline() for _ in range(confirmations)]
        assert all(confirmed), "the writer ended"
        child.send_signal(signal.SIGKILL)
        # Confirmed before the kill, too; such short writes to a pipe are never torn.
        confirmed += child.stdout.readlines()
        assert child.wait() == -signal.SIGKILL
        return [line.decode().strip() for line in confirmed]


@pytest.mark.slow
async def test_killed_at_any_moment_loses_nothing_confirmed(path: Path) -> None:
    for confirmations in (1, 2, 5, 17, 40):
        confirmed = int(run_and_kill("pairs", path, confirmations)[-1])
        # What a log that was cut anywhere still holds: whole transactions from the first on.
        log = path.with_name(path.name + "-wal").read_bytes()
        for cut in {0, 1, 31, 32, len(log) // 3, len(log) - 1, len(log)}:
            copy = path.with_name(f"cut{cut}.db")
            shutil.copy(path, copy)
            copy.with_name(copy.name + "-wal").write_bytes(log[:cut])
            torn = await rows_of(copy)
            assert torn.get("a", 0) == torn.get("b", 0)
            assert torn.get("a", 0) <= confirmed + 1
        rows = await rows_of(path)
        assert rows["a"] == rows["b"]
        assert confirmed <= rows["a"] <= confirmed + 1


@pytest.mark.slow
async def test_a_killed_registry_forgets_no_confirmed_node_name_trust_or_network(path: Path) -> None:
    confirmed: set[str] = set()
    for confirmations in (1, 10, 60):
        confirmed.update(run_and_kill("directory", path, confirmations))
        async with open_store(path) as store:
            directory = await store.load_directory(DirectorySettings(), now=0)
        kept = {f"register {node.node_id}" for node in directory.nodes()}
        kept |= {f"set_hostname {node.hostname[1:]}" for node in directory.nodes() if node.hostname}
        kept |= {f"create_network {network.name[1:]}" for network in directory.networks()}
        peer = PeerInfo("192.0.2.1", 1, 1)
        for node in range(2, directory.counts().node_ids + 1):
            if directory.handle({"type": "check_trust", "node_id": node, "peer_id": 1}, peer, 0)["trusted"]:
                kept.add(f"report_trust {node}")
        assert confirmed <= kept
        assert len(kept) <= len(confirmed) + 3 * 4  # at most what four clients had begun, in each of the runs


async def test_the_store_of_a_killed_process_can_be_opened_at_once(path: Path) -> None:
    run_and_kill("pairs", path, 1)
    with trio.fail_after(5):
        await rows_of(path)


async def test_closing_does_not_wait_for_a_disk_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = trio.Event()
    finished = trio.Event()
    token = trio.lowlevel.current_trio_token()
    finish = Database.finish

    def hanging_write(self: Database, number: int, changes: list[Change]) -> None:
        trio.from_thread.run(release.wait, trio_token=token)

    def hanging_finish(self: Database, number: int, changes: list[Change]) -> None:
        trio.from_thread.run(release.wait, trio_token=token)
        finish(self, number, changes)
        trio.from_thread.run_sync(finished.set, trio_token=token)

    monkeypatch.setattr(Database, "write", hanging_write)
    monkeypatch.setattr(Database, "finish", hanging_finish)
    assert store_module.CLOSE_TIMEOUT == 1.0
    monkeypatch.setattr(store_module, "CLOSE_TIMEOUT", 0.05)
    late = threading.Timer(20, lambda: trio.from_thread.run_sync(release.set, trio_token=token))
    late.start()  # or a store that waits would wait for ever
    async with trio.open_nursery() as nursery, open_store(path) as store:
        nursery.start_soon(partial(store.commit, [change(1)]))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not release.is_set()
    late.cancel()
    release.set()
    await finished.wait()  # the file is closed
