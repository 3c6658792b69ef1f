"""Reading and replacing `config.json`, and the note of a running node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot_trio.cli import config_file, runtime_file


def test_a_saved_file_is_sorted_indented_and_private(tmp_path: Path) -> None:
    path = tmp_path / ".pilot" / "config.json"
    config_file.save(path, {"b": True, "a": "ä"})
    assert path.read_text() == '{\n  "a": "ä",\n  "b": true\n}\n'
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert config_file.load(path) == {"a": "ä", "b": True}
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.mkdir()
    with pytest.raises(OSError):
        config_file.save(path, {"a": 1})
    assert list(tmp_path.iterdir()) == [path]


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    link = tmp_path / "config.json"
    link.symlink_to("real.json")
    config_file.save(link, {"a": 1})
    assert link.is_symlink()
    assert config_file.load(tmp_path / "real.json") == {"a": 1}


@pytest.mark.parametrize(("size", "fits"), [(0, True), (1, False)])
def test_a_file_above_the_limit_is_refused(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}" + " " * (config_file.CONFIG_BYTES_MAX - 2 + size))
    if fits:
        assert config_file.load(path) == {}
    else:
        with pytest.raises(config_file.ConfigFileError, match="larger than"):
            config_file.load(path)


def test_the_note_of_a_running_node_is_found_by_its_socket(tmp_path: Path) -> None:
    socket = tmp_path / "pilot.sock"
    path = runtime_file.write(tmp_path, socket, {"registry": "127.0.0.1:9000"})
    assert runtime_file.read(tmp_path, socket)["registry"] == "127.0.0.1:9000"
    assert runtime_file.read(tmp_path, tmp_path / "other.sock") == {}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pid": "x"}', '{"pid": 999999999}', '{"pid": null}', '{"pid": 1e999}']
)
def test_a_note_of_nobody_is_no_note(tmp_path: Path, content: str) -> None:
    socket = tmp_path / "pilot.sock"
    runtime_file.write(tmp_path, socket, {"registry": "127.0.0.1:9000"}).write_text(content)
    assert runtime_file.read(tmp_path, socket) == {}


def test_a_note_of_another_users_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_file.write(tmp_path, tmp_path / "s", {"registry": "r:1"})

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert runtime_file.read(tmp_path, tmp_path / "s")["registry"] == "r:1"


def test_a_note_that_may_not_be_read_is_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_file.write(tmp_path, tmp_path / "s", {"registry": "r:1"})

    def refuse(_path: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert runtime_file.read(tmp_path, tmp_path / "s") == {}


def test_a_process_takes_back_its_own_note_only(tmp_path: Path) -> None:
    path = runtime_file.write(tmp_path, tmp_path / "s", {})
    runtime_file.remove(tmp_path, tmp_path / "other")
    path.write_text('{"pid": 1}')
    runtime_file.remove(tmp_path, tmp_path / "s")
    assert path.exists()
    runtime_file.write(tmp_path, tmp_path / "s", {})
    runtime_file.remove(tmp_path, tmp_path / "s")
    assert not path.exists()
