from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest
import trio

from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import IdentityError
from pilot_trio.net import files


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def test_saved_bytes_are_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert await files.load(path) is None
    await files.save(path, b"one")
    await files.save(path, b"two")
    assert await files.load(path) == b"two"
    assert names_in(tmp_path) == ["state.json"]


async def test_saved_file_is_private_whatever_the_umask_and_the_old_mode(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    path.chmod(0o644)
    leftover = tmp_path / "state.json.tmp"
    leftover.write_bytes(b"left by a crash")
    leftover.chmod(0o666)
    await files.save(path, b"new")
    assert mode_of(path) == 0o600
    assert path.read_bytes() == b"new"


async def test_missing_directories_are_made_private_and_existing_ones_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    await files.save(tmp_path / "home/sub/state.json", b"x")
    assert mode_of(tmp_path / "home/sub") == 0o700
    assert mode_of(tmp_path) == 0o755


async def test_symbolic_link_keeps_pointing_at_the_replaced_target(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "id.json"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "id.json"
    link.symlink_to(target)
    await files.save(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


async def test_failed_save_keeps_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    await files.save(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        await files.save(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["state.json"]


async def test_directory_or_pipe_in_place_of_a_file_is_an_error_and_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with trio.fail_after(5):
        with pytest.raises(OSError, match="not a regular file"):
            await files.load(tmp_path / "pipe")
        with pytest.raises(OSError):
            await files.load(tmp_path)


async def test_file_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILE_SIZE_MAX", 10)
    path = tmp_path / "big"
    for size in (9, 10):
        path.write_bytes(b"x" * size)
        assert len(await files.load(path) or b"") == size
    path.write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        await files.load(path)


async def test_remove_forgives_a_missing_file(tmp_path: Path) -> None:
    await files.save(tmp_path / "x", b"x")
    await files.remove(tmp_path / "x")
    await files.remove(tmp_path / "x")
    assert names_in(tmp_path) == []


async def test_made_directory_is_private(tmp_path: Path) -> None:
    await files.make_directory(tmp_path / "a/b")
    await files.make_directory(tmp_path / "a/b")
    assert mode_of(tmp_path / "a/b") == 0o700


async def test_identity_survives_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    assert await files.load_identity(path) is None
    identity = Identity.generate()
    await files.save(path, identity.dump())
    assert await files.load_identity(path) == identity


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o601, 0o660])
async def test_identity_readable_by_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.json"
    await files.save(path, Identity.generate().dump())
    path.chmod(mode)
    with pytest.raises(IdentityError) as caught:
        await files.load_identity(path)
    assert str(caught.value) == f"identity file has loose permissions (mode {mode:o}); chmod 600 {path} and retry"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "unmarshal identity: "),
        (b"[]", "unmarshal identity: "),
        (b"{}", "unmarshal identity: "),
        (b'{"private_key": 5, "public_key": ""}', "unmarshal identity: "),
        (b'{"private_key": "!", "public_key": ""}', "unmarshal identity: "),
        (b'{"private_key": "AAAA", "public_key": ""}', "invalid private key size: 3"),
    ],
)
async def test_corrupt_identity_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "identity.json"
    await files.save(path, content)
    with pytest.raises(IdentityError) as caught:
        await files.load_identity(path)
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith(
        f"; restore {path} from a copy, or move it away to start with a new key and address"
    )


async def test_identity_whose_halves_differ_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    record = json.loads(Identity.generate().dump())
    record["public_key"] = base64.b64encode(Identity.generate().public_key).decode()
    await files.save(path, json.dumps(record).encode())
    with pytest.raises(IdentityError, match="identity file corrupted: public key does not match private key"):
        await files.load_identity(path)


async def test_identity_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="read identity"):
        await files.load_identity(tmp_path)
