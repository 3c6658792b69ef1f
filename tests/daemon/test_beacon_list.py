from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.daemon.beacon_list import BEACONS_MAX, CACHE_TIME, SAVE_INTERVAL, BeaconList, usable
from pilot_trio.net.endpoint import Endpoint
from tests.daemon.fakes import FakeClient, unavailable

NOW = 1_800_000_000.0
ONE, TWO = Endpoint("8.8.8.8", 9001), Endpoint("b.example", 9001)


class World:
    def __init__(self, path: Path | None, *addrs: str) -> None:
        self.now = NOW
        self.registry = FakeClient({"beacon_list": {"beacons": [{"id": 1, "addr": addr} for addr in addrs]}})
        self.path = path
        self.list = self.restart()

    def restart(self) -> BeaconList:
        self.list = BeaconList(self.registry, self.path, lambda: self.now)
        return self.list


async def test_the_registrys_list_is_kept_for_a_start_without_registry(tmp_path: Path) -> None:
    world = World(tmp_path / "beacons.json", str(TWO), str(ONE))
    assert await world.list.ask() == [ONE, TWO]
    assert json.loads((tmp_path / "beacons.json").read_text()) == {
        "saved_at": "2027-01-15T08:00:00Z",
        "addrs": [str(ONE), str(TWO)],
    }
    world.registry.answers["beacon_list"] = unavailable()
    assert await world.list.ask() is None  # what was chosen stays
    world.restart()
    world.now += CACHE_TIME - 1
    assert await world.list.ask() == [ONE, TWO]
    assert await world.list.ask() is None


@pytest.mark.parametrize("age", [CACHE_TIME, -10.0])
async def test_a_list_of_long_ago_or_of_the_future_is_not_used(tmp_path: Path, age: float) -> None:
    world = World(tmp_path / "beacons.json", str(ONE))
    await world.list.ask()
    world.registry.answers["beacon_list"] = unavailable()
    world.now += age
    assert await world.restart().ask() is None


async def test_the_file_is_written_when_the_list_changes_and_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "beacons.json"
    world = World(path, str(ONE))
    await world.list.ask()
    path.unlink()
    world.now += SAVE_INTERVAL - 1
    await world.list.ask()
    assert not path.exists()
    world.now += 1
    await world.list.ask()
    assert path.exists()
    world.registry.answers["beacon_list"] = {"beacons": [{"addr": str(TWO)}]}
    await world.list.ask()
    assert json.loads(path.read_text())["addrs"] == [str(TWO)]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"saved_at": 5, "addrs": []}', b'{"saved_at": "2027-01-15T08:00:00Z", "addrs": 1}', b"\xff"]
)  # fmt: skip
async def test_a_file_of_anything_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "beacons.json").write_bytes(content)
    world = World(tmp_path / "beacons.json")
    world.registry.answers["beacon_list"] = unavailable()
    assert await world.list.ask() is None


async def test_what_a_file_names_is_filtered_like_what_the_registry_names(tmp_path: Path) -> None:
    addrs: list[Any] = ["10.0.0.1:1", 5, str(ONE)]
    (tmp_path / "beacons.json").write_text(json.dumps({"saved_at": "2027-01-15T08:00:00Z", "addrs": addrs}))
    world = World(tmp_path / "beacons.json")
    world.registry.answers["beacon_list"] = unavailable()
    assert await world.list.ask() == [ONE]


async def test_a_disk_that_fails_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    world = World(tmp_path / "file" / "beacons.json", str(ONE))
    assert await world.list.ask() == [ONE]
    assert "cannot save beacons" in caplog.text


@pytest.mark.parametrize("rows", ["junk", None, [None, "x", {}, {"addr": None}]])
async def test_a_registry_may_answer_anything(rows: Any) -> None:
    world = World(None)
    world.registry.answers["beacon_list"] = {"beacons": rows}
    assert await world.list.ask() == []


def test_only_usable_entries_of_a_list_count() -> None:
    junk = ["10.0.0.1:1", "127.0.0.1:1", ":1", "x", 5, None]
    assert usable([*junk, "8.8.8.8:1", "b.example:1", "8.8.8.8:1"]) == [
        Endpoint("8.8.8.8", 1),
        Endpoint("b.example", 1),
    ]


@pytest.mark.parametrize("count", [BEACONS_MAX, BEACONS_MAX + 1])
def test_length_of_a_list_is_bounded(count: int) -> None:
    assert len(usable(f"b{number}.example:1" for number in range(count))) == BEACONS_MAX
