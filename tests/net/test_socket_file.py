"""The socket file: rights, stale and living sockets, paths that cannot work."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_trio.errors import StartupError
from pilot_trio.net import socket_file
from pilot_trio.net.socket_file import SOCKET_PATH_MAX, create_socket_file


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pt") as name:
        yield Path(name)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(path))
        except OSError:
            return False
    return True


def test_socket_is_private_listens_and_leaves_no_staging_directory(directory: Path) -> None:
    previous = os.umask(0)
    try:
        file = create_socket_file(directory / "s.sock")
    finally:
        os.umask(previous)
    with file.listener:
        found = file.path.lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert list(directory.iterdir()) == [file.path]
        assert connects(file.path)
        file.remove()
    assert list(directory.iterdir()) == []


def test_stale_socket_is_replaced(directory: Path) -> None:
    path = directory / "s.sock"
    create_socket_file(path).listener.close()
    assert not connects(path)
    with create_socket_file(path).listener:
        assert connects(path)


def test_living_daemon_keeps_its_socket_and_is_named(directory: Path) -> None:
    path = directory / "s.sock"
    with create_socket_file(path).listener:
        with pytest.raises(StartupError, match=rf"{path} belongs to a running daemon \(pid {os.getpid()}\)"):
            create_socket_file(path)
        assert connects(path)
    assert list(directory.iterdir()) == [path]


def test_living_daemon_with_a_full_backlog_keeps_its_socket(directory: Path) -> None:
    path = directory / "s.sock"
    waiting = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(os.fspath(path))
        busy.listen(0)
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            client.connect_ex(os.fspath(path))
        with pytest.raises(StartupError, match="belongs to a running daemon"):
            create_socket_file(path)
    for client in waiting:
        client.close()


def test_daemon_that_starts_at_the_same_moment_wins_if_it_was_faster(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "s.sock"
    faster: list[socket.socket] = []
    starting: list[Path] = []
    listen = socket_file._listen

    def listen_while_another_publishes(staged: Path) -> socket.socket:
        starting.append(staged)
        if len(starting) == 1:
            faster.append(create_socket_file(path).listener)
        return listen(staged)

    monkeypatch.setattr(socket_file, "_listen", listen_while_another_publishes)
    with pytest.raises(StartupError, match="belongs to a running daemon"):
        create_socket_file(path)
    with faster[0]:
        assert connects(path)
    assert list(directory.iterdir()) == [path]


def test_of_two_daemons_that_find_the_same_stale_socket_the_faster_one_keeps_its_own(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "s.sock"
    create_socket_file(path).listener.close()
    remove_stale = socket_file._remove_stale
    faster: list[socket.socket] = []

    def remove_too_late(path: Path, found: os.stat_result) -> None:
        if not faster:
            faster.append(socket.socket())  # only the first one is late
            faster.append(create_socket_file(path).listener)
        remove_stale(path, found)

    monkeypatch.setattr(socket_file, "_remove_stale", remove_too_late)
    with pytest.raises(StartupError, match="belongs to a running daemon"):
        create_socket_file(path)
    assert connects(path)
    assert list(directory.iterdir()) == [path]
    for sock in faster:
        sock.close()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_not_a_socket_is_not_touched(directory: Path, kind: str) -> None:
    path = directory / "s.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(directory / "elsewhere")
    with pytest.raises(StartupError, match="is a directory" if kind == "directory" else "is not a socket"):
        create_socket_file(path)
    assert os.path.lexists(path)


def test_missing_parent_is_named_as_the_reference_names_it(directory: Path) -> None:
    parent = directory / "missing"
    with pytest.raises(StartupError) as caught:
        create_socket_file(parent / "s.sock")
    assert str(caught.value) == (
        f"ipc start: create socket staging dir under {parent}: stat {parent}: no such file or directory: "
        "create it, or choose another socket path"
    )


def test_parent_that_is_a_file_is_named(directory: Path) -> None:
    parent = directory / "file"
    parent.write_text("")
    with pytest.raises(StartupError, match=f"under {parent}: not a directory: choose a socket path in a dir"):
        create_socket_file(parent / "s.sock")


def test_directory_without_write_permission_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")  # root may write anywhere, so the kernel cannot be asked here

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    want = f"create socket staging dir under {directory}: permission denied: choose a socket path in a directory where"
    with pytest.raises(StartupError, match=want):
        create_socket_file(directory / "s.sock")


@pytest.mark.parametrize(("excess", "works"), [(0, True), (1, False)])
def test_longest_path_works_although_its_staging_path_is_longer(directory: Path, excess: int, works: bool) -> None:
    path = directory / ("s" * (SOCKET_PATH_MAX - len(os.fsencode(directory)) - 1 + excess))
    if works:
        with create_socket_file(path).listener:
            assert connects(path)
    else:
        with pytest.raises(StartupError, match=rf"is {SOCKET_PATH_MAX + 1} bytes long, the system allows 107"):
            create_socket_file(path)
        assert list(directory.iterdir()) == []


def test_removal_spares_a_socket_that_took_the_name(directory: Path) -> None:
    path = directory / "s.sock"
    first = create_socket_file(path)
    path.unlink()
    with first.listener, create_socket_file(path).listener:
        first.remove()
        assert connects(path)
    path.unlink()
    first.remove()  # nothing there: fine too
