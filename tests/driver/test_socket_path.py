from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.driver import find_socket, open_driver
from pilot_trio.driver.socket_path import CONNECT_TIMEOUT, connect
from pilot_trio.errors import DaemonUnavailable
from pilot_trio.wire.ipc import Code, encode_frame


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path, because the paths of Unix sockets must be short."""
    for name in ("PILOT_SOCKET", "PILOT_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as folder:
        monkeypatch.setenv("HOME", folder)
        yield Path(folder)


def configure(home: Path, text: str) -> None:
    (home / ".pilot").mkdir()
    (home / ".pilot" / "config.json").write_text(text)


def test_nothing_set_means_tmp(home: Path) -> None:
    assert find_socket() == Path("/tmp/pilot.sock")


def test_the_runtime_directory_beats_tmp(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert find_socket() == Path("/run/user/1/pilot.sock")


def test_the_configuration_beats_the_runtime_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    configure(home, json.dumps({"socket": "/x/y.sock"}))
    assert find_socket() == Path("/x/y.sock")


def test_pilot_home_replaces_the_home_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "other"
    other.mkdir()
    configure(home, json.dumps({"socket": "/not/this"}))
    configure(other, json.dumps({"socket": "/but/this"}))
    monkeypatch.setenv("PILOT_HOME", str(other))
    assert find_socket() == Path("/but/this")


def test_the_environment_beats_everything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home, json.dumps({"socket": "/x/y.sock"}))
    monkeypatch.setenv("PILOT_SOCKET", "/env.sock")
    assert find_socket() == Path("/env.sock")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"socket":7}', '{"socket":""}', "[" * 100_000])
def test_an_unusable_configuration_counts_as_empty(home: Path, text: str) -> None:
    configure(home, text)
    assert find_socket() == Path("/tmp/pilot.sock")


async def test_the_driver_finds_the_socket_by_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "s"
    monkeypatch.setenv("PILOT_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with open_driver() as node, trio.open_nursery() as nursery:
            server, _ = listening.accept()
            nursery.start_soon(node.health)
            with server:
                assert await trio.to_thread.run_sync(server.recv, 99) == encode_frame(Code.HEALTH)
                server.sendall(encode_frame(Code.HEALTH_OK, b'{"status":"ok"}'))


@pytest.mark.parametrize(
    "name, reason", [("absent", "No such file"), ("file", "Connection refused"), ("x" * 200, "too long")]
)
async def test_where_nobody_listens_the_error_names_path_and_reason(home: Path, name: str, reason: str) -> None:
    (home / "file").touch()
    with pytest.raises(DaemonUnavailable) as caught:
        await connect(home / name)
    assert str(home / name) in str(caught.value)
    assert reason in str(caught.value)


async def test_a_full_backlog_is_waited_for_but_not_for_ever(home: Path, autojump_clock: MockClock) -> None:
    path = home / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        first = await connect(path)
        started_at = trio.current_time()
        with pytest.raises(DaemonUnavailable, match="backlog is full"):
            await connect(path)
        assert CONNECT_TIMEOUT <= trio.current_time() - started_at < CONNECT_TIMEOUT + 0.1

        async def accept_later() -> None:
            await trio.sleep(1)
            listening.accept()[0].close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_later)
            second = await connect(path)
        first.close()
        second.close()
