"""The program that `test_store` kills: commits numbered pairs of rows for ever and confirms each on standard output."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import trio

from pilot_trio.proto.directory import Change
from pilot_trio.rendezvous.store import open_store


async def main(path: Path) -> None:
    async with open_store(path) as store:
        last = max((row["value"] for _, _, row in await store.load()), default=0)
        for number in itertools.count(last + 1):
            await store.commit([Change("pair", name, {"value": number}) for name in ("a", "b")])
            os.write(1, b"%d\n" % number)


trio.run(main, Path(sys.argv[1]))
