from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot_trio.config import Config, RegistryConfig
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.homedir import open_home
from pilot_trio.errors import StartupError

REGISTRY = RegistryConfig(endpoint="127.0.0.1:9000")


async def test_first_start_makes_an_identity_that_later_ones_find(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", registry=REGISTRY)
    first = await open_home(config)
    second = await open_home(config)
    assert first.identity == second.identity
    assert first.persistent
    assert first.email == second.email == f"{first.identity.public_key[:6].hex()}@nodes.pilotprotocol.network"
    assert first.file("trust.json") == tmp_path / "home/trust.json"
    account = tmp_path / "home/account.json"
    assert account.read_text() == '{\n  "email": "' + first.email + '"\n}'


async def test_without_a_key_file_nothing_is_kept(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", identity=None, registry=REGISTRY)
    home = await open_home(config)
    assert not home.persistent
    assert home.file("trust.json") is None
    assert not (tmp_path / "home").exists()
    assert (await open_home(config)).identity != home.identity


async def test_address_of_the_owner_comes_from_the_setting_then_from_the_account(tmp_path: Path) -> None:
    assert (await open_home(Config(home=tmp_path, registry=REGISTRY, email="me@here"))).email == "me@here"
    assert (await open_home(Config(home=tmp_path, registry=REGISTRY))).email == "me@here"


@pytest.mark.parametrize("content", [b"", b"[]", b"junk", b'{"email": 5}', b'{"email": "no at"}', b"\xff"])
async def test_unusable_account_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "account.json").write_bytes(content)
    home = await open_home(Config(home=tmp_path, registry=REGISTRY))
    assert json.loads((tmp_path / "account.json").read_bytes()) == {"email": home.email}
    assert home.email.endswith("@nodes.pilotprotocol.network")


async def test_address_without_at_ends_the_start(tmp_path: Path) -> None:
    for identity in (None, tmp_path / "id.json"):
        with pytest.raises(StartupError, match=r"^invalid email: email address must contain @$"):
            await open_home(Config(home=tmp_path, identity=identity, registry=REGISTRY, email="me"))


async def test_identity_that_others_can_read_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(Identity.generate().dump())
    path.chmod(0o644)
    with pytest.raises(StartupError) as caught:
        await open_home(Config(home=tmp_path, registry=REGISTRY))
    assert str(caught.value) == (
        f"load identity: identity file has loose permissions (mode 644); chmod 600 {path} and retry"
    )


async def test_identity_that_cannot_be_saved_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match=r"identity: .*file"):
        await open_home(Config(home=tmp_path, identity=tmp_path / "file" / "id.json", registry=REGISTRY))


async def test_full_disk_ends_the_start_of_a_node_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "identity.json.tmp").mkdir()
    with pytest.raises(StartupError, match=r"^save identity: .*identity.json.tmp"):
        await open_home(Config(home=tmp_path, registry=REGISTRY))


async def test_account_that_cannot_be_saved_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "account.json").mkdir()
    home = await open_home(Config(home=tmp_path, registry=REGISTRY))
    assert "@" in home.email
    assert "cannot save account" in caplog.text
