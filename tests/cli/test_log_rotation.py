"""Rotation of the daemon's own log."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilot_trio.cli.log_rotation import MEGABYTE, Rotation, rotation_for


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Callable[..., int]]:
    opened: list[int] = []

    def open_(name: str = "pilot.log", flags: int = os.O_APPEND) -> int:
        opened.append(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | flags, 0o600))
        return opened[-1]

    yield open_
    for descriptor in opened:
        os.close(descriptor)


def test_a_log_above_its_size_moves_into_a_compressed_file(tmp_path: Path, open_log: Callable[..., int]) -> None:
    log = open_log()
    rotate = Rotation(log, tmp_path / "pilot.log", 10, 2)
    for text in (b"0123456789", b"X"):
        os.write(log, text)
        rotate()
    assert (tmp_path / "pilot.log").read_bytes() == b""
    packed = tmp_path / "pilot.log.pilot.1.gz"
    assert gzip.decompress(packed.read_bytes()) == b"0123456789X"
    assert packed.stat().st_mode & 0o777 == 0o600
    os.write(log, b"after")
    assert (tmp_path / "pilot.log").read_bytes() == b"after"


def test_older_generations_move_up_and_the_last_is_dropped(tmp_path: Path, open_log: Callable[..., int]) -> None:
    log = open_log()
    rotate = Rotation(log, tmp_path / "pilot.log", 0, 2)
    for text in (b"one", b"two", b"three"):
        os.write(log, text)
        rotate()
    found = {p.name: gzip.decompress(p.read_bytes()) for p in tmp_path.glob("*.gz")}
    assert found == {"pilot.log.pilot.1.gz": b"three", "pilot.log.pilot.2.gz": b"two"}


def test_without_generations_the_log_is_only_emptied(tmp_path: Path, open_log: Callable[..., int]) -> None:
    log = open_log()
    os.write(log, b"one")
    Rotation(log, tmp_path / "pilot.log", 0, 0)()
    assert [p.name for p in tmp_path.iterdir()] == ["pilot.log"]
    assert (tmp_path / "pilot.log").stat().st_size == 0


def test_a_failure_leaves_the_log_as_it_is(tmp_path: Path, open_log: Callable[..., int]) -> None:
    log = open_log()
    os.write(log, b"one")
    (tmp_path / "pilot.log.pilot.1.gz").mkdir()
    Rotation(log, tmp_path / "pilot.log", 0, 1)()
    assert (tmp_path / "pilot.log").read_bytes() == b"one"


def test_only_an_appended_regular_file_below_the_home_directory_is_rotated(
    tmp_path: Path, open_log: Callable[..., int]
) -> None:
    def wanted(descriptor: int, home: Path = tmp_path, megabytes: int = 1, *, chosen: bool = False) -> bool:
        return rotation_for(descriptor, home, megabytes=megabytes, backups=1, chosen=chosen) is not None

    log = open_log()
    assert wanted(log)
    assert not wanted(log, megabytes=0)
    assert not wanted(log, home=tmp_path / "elsewhere")
    assert wanted(log, home=tmp_path / "elsewhere", chosen=True)
    assert not wanted(open_log("plain.log", 0))
    null = os.open(os.devnull, os.O_WRONLY | os.O_APPEND)
    assert not wanted(null, chosen=True)
    os.close(null)
    assert not wanted(null, chosen=True)


def test_the_size_is_given_in_megabytes(tmp_path: Path, open_log: Callable[..., int]) -> None:
    log = open_log()
    rotate = rotation_for(log, tmp_path, megabytes=1, backups=0, chosen=False)
    assert rotate is not None
    os.write(log, b"x" * MEGABYTE)
    rotate()
    assert (tmp_path / "pilot.log").stat().st_size == MEGABYTE
    os.write(log, b"x")
    rotate()
    assert (tmp_path / "pilot.log").stat().st_size == 0
