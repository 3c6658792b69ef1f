"""The programs that `test_store` kills: they commit for ever and confirm each commit by a line on standard output.

- `pairs PATH`: numbered pairs of rows, one transaction after another.
- `directory PATH`: several clients of a directory that register nodes, name them, trust and make networks, at once.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import trio

from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.directory import Change, DirectorySettings, PeerInfo
from pilot_trio.rendezvous.store import open_store

CLIENTS = 4
NOW = 1e9


async def write_pairs(path: Path) -> None:
    async with open_store(path) as store:
        last = max((row["value"] for _, _, row in await store.load()), default=0)
        for number in itertools.count(last + 1):
            await store.commit([Change("pair", name, {"value": number}) for name in ("a", "b")])
            os.write(1, b"%d\n" % number)


async def use_directory(path: Path) -> None:
    async with open_store(path) as store, trio.open_nursery() as nursery:
        directory = await store.load_directory(DirectorySettings(admin_token="t"), now=NOW)
        first = directory.counts().node_ids

        async def ask(kind: str, signed: str, identity: Identity, **fields: Any) -> int:
            message = {"type": kind, "admin_token": "t", **fields}
            answer = directory.handle(message | {"signature": identity.sign_text(signed)}, PeerInfo("h", 1, 1), NOW)
            await store.commit(directory.take_changes())
            assert answer["type"] == f"{kind}_ok", answer
            os.write(1, f"{kind} {answer.get('node_id', fields.get('node_id'))}\n".encode())
            return int(answer.get("node_id", 0))

        async def client(offset: int) -> None:
            for number in itertools.count(first + offset, CLIENTS):
                identity = Identity.from_seed(number.to_bytes(32, "big"))
                key = identity.public_key_b64
                node = await ask("register", f"register:h:1:{key}", identity, listen_addr="h:1", public_key=key)
                await ask("set_hostname", f"set_hostname:{node}", identity, node_id=node, hostname=f"h{node}")
                if node > 1:
                    await ask("report_trust", f"report_trust:{node}:1", identity, node_id=node, peer_id=1)
                await ask("create_network", "", identity, node_id=node, name=f"n{node}")

        for offset in range(CLIENTS):
            nursery.start_soon(client, offset)


trio.run({"pairs": write_pairs, "directory": use_directory}[sys.argv[1]], Path(sys.argv[2]))
