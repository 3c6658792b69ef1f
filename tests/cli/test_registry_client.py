"""One question to a registry on a plain socket, and the commands that ask one."""

from __future__ import annotations

import datetime
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilot_trio.cli import registry_client
from pilot_trio.cli.registry_client import RegistryTLS, call
from pilot_trio.errors import RegistryError, RegistryUnavailable
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, encode_frame
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

Answer = Callable[[dict[str, Any]], bytes]


class FakeRegistry:
    """Answers each connection's first request with `answer`, then hangs up unless the answer was empty."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answer: Answer = lambda _request: reply(type="ok")
        self.requests: list[dict[str, Any]] = []
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._clients):
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self._clients.append(client)
            received = b""
            while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
                data = client.recv(65536)
                if not data:
                    return
                received += data
            body = received[4:]
            self.requests.append(json.loads(body))
            answer = self.answer(self.requests[-1])
            if answer:
                client.sendall(answer)
                client.close()


def reply(**fields: Any) -> bytes:
    return encode_frame(json.dumps(fields).encode())


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    """A registry that the commands ask."""
    del home
    running = FakeRegistry()
    monkeypatch.setenv("PILOT_REGISTRY", running.address)
    yield running
    running.close()


def test_a_question_gets_its_answer(registry: FakeRegistry) -> None:
    registry.answer = lambda request: reply(type="lookup_ok", node_id=request["node_id"])
    assert call(registry.address, {"type": "lookup", "node_id": 5}) == {"type": "lookup_ok", "node_id": 5}


def test_an_error_keeps_the_words_of_the_registry(registry: FakeRegistry) -> None:
    registry.answer = lambda _: reply(type="error", error="node not found")
    with pytest.raises(RegistryError, match=r"registry: node not found") as caught:
        call(registry.address, {"type": "lookup"})
    assert not isinstance(caught.value, RegistryUnavailable)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request", "frame too large"),
        ((REGISTRY_FRAME_MAX + 1).to_bytes(4, "big"), "frame too large"),
        (encode_frame(b"nonsense"), "not a JSON message"),
        (encode_frame(b"[]"), "must be a JSON object"),
        (encode_frame(b"{}")[:-1], "closed the connection"),
        (b"\0", "closed the connection"),
        (b"", "timed out|in time"),
    ],
)
def test_what_is_no_answer_is_unavailable(registry: FakeRegistry, answer: bytes, text: str) -> None:
    registry.answer = lambda _: answer
    with pytest.raises(RegistryUnavailable, match=text):
        call(registry.address, {"type": "lookup"}, timeout=60 if answer else 0.1)


def test_an_address_that_is_none_is_unavailable() -> None:
    with pytest.raises(RegistryUnavailable, match="not host:port"):
        call("nowhere", {"type": "lookup"})


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, str]:
    """A self-signed certificate, its key, its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    chain, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private, hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_a_pinned_certificate_is_checked_before_anything_is_said(certificate: tuple[Path, Path, str]) -> None:
    chain, private, fingerprint = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    running = FakeRegistry(context)
    try:
        colons = ":".join(fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
        for good in (fingerprint, colons):
            assert call(running.address, {"type": "x"}, RegistryTLS(good)) == {"type": "ok"}
        said = len(running.requests)
        for bad in ("00" * 32, ""):  # another fingerprint; the system's authorities, which do not know it
            with pytest.raises(RegistryUnavailable):
                call(running.address, {"type": "x"}, RegistryTLS(bad))
        assert len(running.requests) == said
    finally:
        running.close()


def test_tls_settings_of_the_config_are_used(cli: Cli, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(address: str, request: Any, tls: Any, timeout: float = 0) -> dict[str, Any]:
        del request, timeout
        seen.append((address, tls))
        return {}

    monkeypatch.setattr(registry_client, "call", record)
    cli("network", "policy", "1")
    cli("config", "--set", "registry_tls=true")
    cli("config", "--set", f"registry_fingerprint={'ab' * 32}")
    cli("network", "policy", "1")
    cli("config", "--set", "registry_trust=system")
    cli("network", "policy", "1")
    assert seen == [
        (registry.address, None),
        (registry.address, RegistryTLS("ab" * 32)),
        (registry.address, RegistryTLS("")),
    ]


def test_lookup_hides_endpoints(cli: Cli, registry: FakeRegistry) -> None:
    registry.answer = lambda _: reply(
        type="lookup_ok", node_id=5, real_addr="192.0.2.1:1", lan_addrs=["x"], public=True
    )
    assert cli("--json", "lookup", "5").data == {"type": "lookup_ok", "node_id": 5, "public": True}


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (
            "create --name lab --node-id 5 --join-rule token --token t --enterprise --network-admin-token n --rules {}",
            {
                "type": "create_network", "node_id": 5, "name": "lab", "join_rule": "token", "token": "t",
                "enterprise": True, "network_admin_token": "n", "rules": "{}",
            },
        ),
        ("delete 3", {"type": "delete_network", "network_id": 3}),
        ("rename 3 lab", {"type": "rename_network", "network_id": 3, "name": "lab"}),
        ("promote 3 5", {"type": "promote_member", "network_id": 3, "node_id": 0, "target_node_id": 5}),
        ("demote 3 5", {"type": "demote_member", "network_id": 3, "node_id": 0, "target_node_id": 5}),
        ("kick 3 5", {"type": "kick_member", "network_id": 3, "node_id": 0, "target_node_id": 5}),
        ("join 3 --node-id 5", {"type": "join_network", "network_id": 3, "node_id": 5, "token": ""}),
        (
            "policy 3 --max-members 7 --description d --allowed-ports 7,1001",
            {"type": "set_network_policy", "network_id": 3, "max_members": 7, "description": "d", "allowed_ports": [7, 1001]},
        ),
    ],
)  # fmt: skip
def test_an_administrator_speaks_to_the_registry_with_the_token(
    cli: Cli, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, words: str, request_: dict[str, Any]
) -> None:
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "secret")
    assert cli("--json", "network", *words.split()).data == {"type": "ok"}
    assert registry.requests == [{**request_, "admin_token": "secret"}]


def test_reading_a_role_or_a_policy_needs_no_token(cli: Cli, registry: FakeRegistry) -> None:
    cli("--json", "network", "role", "3", "5")
    cli("--json", "network", "policy", "3")
    assert registry.requests == [
        {"type": "get_member_role", "network_id": 3, "target_node_id": 5},
        {"type": "get_network_policy", "network_id": 3},
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"type": "lookup_ok", "public": False}, "refusing tunnel to private node 0:0000.0000.0009 without trust"),
        (
            {"type": "error", "error": "node not found"},
            "cannot look up peer 0:0000.0000.0009 (registry: node not found); refusing tunnel to untrusted node",
        ),
    ],
)
def test_strangers_that_hide_are_refused(
    cli: Cli, daemon: FakeDaemon, registry: FakeRegistry, answer: dict[str, Any], message: str
) -> None:
    del daemon
    registry.answer = lambda _: reply(**answer)
    error = cli("--json", "send", "9", "8", "--data", "x").error
    assert (error["code"], error["message"]) == ("trust_required", message)


def test_strangers_that_do_not_hide_may_be_called(cli: Cli, daemon: FakeDaemon, registry: FakeRegistry) -> None:
    registry.answer = lambda _: reply(type="lookup_ok", public=True)
    assert cli("--json", "send", "9", "8", "--data", "x").code == 0
    assert [request[1][:1] for request in daemon.requests if request[0] == 0x0F] == [b"\x07"]  # asked, not sent


def test_up_does_not_take_a_port_from_a_program_that_is_no_registry(cli: Cli, registry: FakeRegistry) -> None:
    registry.answer = lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n"
    error = cli("--json", "up", "--rendezvous-registry", registry.address).error
    assert error["code"] == "already_exists"
    assert "--rendezvous-registry 127.0.0.1:0" in error["hint"]
