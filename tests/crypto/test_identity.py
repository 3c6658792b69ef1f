from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.errors import IdentityError

VECTORS = Path(__file__).parent.parent / "vectors"
FILE = json.loads((VECTORS / "services.json").read_text())["identity_json"]
REGISTRY = json.loads((VECTORS / "registry.json").read_text())
IDENTITIES = {v["public_key_b64"]: Identity.from_seed(bytes.fromhex(v["seed_hex"])) for v in REGISTRY["identities"]}


def test_the_file_form_is_the_recorded_one() -> None:
    identity = Identity.from_seed(bytes.fromhex(FILE["seed_hex"]))
    assert identity.dump().decode() == FILE["file_text"]
    assert Identity.parse(FILE["file_text"].encode()) == identity


@pytest.mark.parametrize(
    "exchange",
    [e for e in REGISTRY["json_exchanges"] if e.get("signer_public_key_b64") in IDENTITIES],
    ids=lambda e: e["name"],
)
def test_signatures_are_those_that_real_daemons_sent(exchange: dict[str, Any]) -> None:
    identity = IDENTITIES[exchange["signer_public_key_b64"]]
    signature = json.loads(exchange["request_json"])["signature"]
    assert identity.sign_text(exchange["signed_string"]) == signature


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"private_key": "AAAA"}, "invalid private key size: 3"),
        ({"public_key": "AAAA"}, "invalid public key size: 3"),
        ({"public_key": "A" * 43 + "="}, "identity file corrupted: public key does not match private key"),
        ({"private_key": "not base64!"}, "unmarshal identity: "),
        ({"private_key": 7}, "unmarshal identity: "),
    ],
)
def test_an_unusable_file_is_refused_with_the_reason(change: dict[str, Any], text: str) -> None:
    record = json.loads(FILE["file_text"]) | change
    with pytest.raises(IdentityError) as caught:
        Identity.parse(json.dumps(record).encode())
    assert str(caught.value).startswith(text)


@given(st.binary())
def test_any_file_is_an_identity_or_an_identity_error(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Identity.parse(data)


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_malformed_signatures_do_not_verify_and_do_not_raise(key: bytes, signature: bytes, message: bytes) -> None:
    assert not verify(key, signature, message)


def test_secrets_stay_out_of_repr() -> None:
    identity = Identity.generate()
    assert identity.seed.hex() not in repr(identity)
    assert repr(identity.seed) not in repr(identity)
