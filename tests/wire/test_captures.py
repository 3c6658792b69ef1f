"""Every decoder, fed with what real programs sent and what somebody made of it: a value, or `DecodeError`, and nothing else.

The recorded bytes of all layers go to all decoders, mutated in the ways of the road (cut, flipped, grown, spliced): a decoder
cannot rely on getting what was meant for it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import pilot_trio.wire
from pilot_trio.errors import DecodeError
from pilot_trio.wire.eventstream import EventDecoder
from pilot_trio.wire.framing import IPC_FRAME_MAX, REGISTRY_FRAME_MAX, FrameDecoder

VECTORS: Final = Path(__file__).parents[1] / "vectors"
ROUNDS: Final = 2  # mutations of every recorded piece, for every decoder
HEADERS: Final = (0, 4, 5, 8, 9, 25)  # bytes before what another layer decodes: magics, lengths, types, transfer ids
PIECE_MAX: Final = 4096  # bytes of a recorded piece that is used; larger ones are payloads


def pieces(value: Any) -> Iterator[bytes]:
    """Find everything in a vector file that is bytes in hex, and every text as the bytes that it would be on a wire."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from pieces(key)
            yield from pieces(item)
    elif isinstance(value, list):
        for item in value:
            yield from pieces(item)
    elif isinstance(value, str) and len(value) >= 4:
        try:
            yield bytes.fromhex(value)[:PIECE_MAX]
        except ValueError:
            if value.startswith("{"):
                yield value.encode()[:PIECE_MAX]


def captures() -> list[bytes]:
    """Return everything recorded, and what is inside it."""
    found = {piece for path in sorted(VECTORS.glob("*.json")) for piece in pieces(json.loads(path.read_text()))}
    return sorted({piece[header:] for piece in found for header in HEADERS})


CAPTURES: Final = captures()


def functions() -> dict[str, Callable[[bytes], object]]:
    """Return every function and class method of the formats that takes bytes from somebody else."""
    found: dict[str, Callable[[bytes], object]] = {}
    for entry in pkgutil.iter_modules(pilot_trio.wire.__path__):
        module = importlib.import_module(f"pilot_trio.wire.{entry.name}")
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") != module.__name__ or name.startswith("_"):
                continue
            if inspect.isfunction(value) and name.startswith("decode"):
                found[f"{entry.name}.{name}"] = value
            elif inspect.isclass(value) and callable(decode := getattr(value, "decode", None)):
                found[f"{entry.name}.{name}.decode"] = decode
    return found


def chunked_frames(limit: int) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        decoder = FrameDecoder(limit)
        out = []
        for at in range(0, len(data), 7):
            decoder.feed(data[at : at + 7])
            while (frame := decoder.next_frame()) is not None:
                out.append(frame)
        return out

    return read


def chunked_events(data: bytes) -> object:
    decoder = EventDecoder()
    out = []
    for at in range(0, len(data), 7):
        decoder.feed(data[at : at + 7])
        while (event := decoder.next_event()) is not None:
            out.append(event)
    return out


DECODERS: Final = functions() | {
    "framing.ipc": chunked_frames(IPC_FRAME_MAX),
    "framing.registry": chunked_frames(REGISTRY_FRAME_MAX),
    "eventstream.events": chunked_events,
}


def mutated(piece: bytes, chance: random.Random) -> bytes:
    """Do to a piece what networks and attackers do."""
    data = bytearray(piece)
    kind = chance.randrange(6)
    if kind == 0:
        del data[chance.randrange(len(data) + 1) :]
    elif kind == 1 and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        at = chance.randrange(len(data) + 1)
        data[at:at] = chance.randbytes(chance.randrange(1, 9))
    elif kind == 3:
        other = chance.choice(CAPTURES)
        data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]
    elif kind == 4 and len(data) >= 4:  # a length, a count, an id: whatever is there
        at = chance.randrange(len(data) - 3)
        data[at : at + 4] = chance.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x01"])
    else:
        data += chance.randbytes(chance.choice([1, 100, 5000]))
    return bytes(data)


def test_there_is_something_to_try() -> None:
    assert len(CAPTURES) > 300
    assert {name.partition(".")[0] for name in DECODERS} >= {
        "beacon", "dataexchange", "eventstream", "filestream", "framing", "ipc", "packet", "registry", "registry_binary",
        "sack", "tunnel",
    }  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_a_value_or_a_decode_error(name: str) -> None:
    decode, chance = DECODERS[name], random.Random(name)
    good = 0
    for piece in CAPTURES:
        for data in (piece, *(mutated(piece, chance) for _ in range(ROUNDS))):
            try:
                decode(data)
            except DecodeError:
                continue
            good += 1
    assert good  # at least some of it was meant for this one
