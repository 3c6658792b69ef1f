"""The protocol's table of transitions (`spec/transport.md` §3.2): in each state, what each packet brings about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilot_trio.proto.stream.connection import State

from .segment_script import Script, accepted, closed_by_peer, closed_by_us, dialling, established


def closed() -> Script:
    script = established()
    script.gets("RST 0 0 0")
    return script


def holding_a_fin() -> Script:
    script = established()
    script.gets("FIN 11 0 0")
    script.sends("ACK 1 1 4096")
    return script


SYN, SYN_ACK, ACK, DATA = "SYN 0 0 512", "SYN|ACK 0 1 512", "ACK 1 1 512", "ACK 1 1 512 +10"
FIN, FIN_ACK, EARLY_FIN, RST = "FIN 1 0 0", "FIN|ACK 1 2 0", "FIN 11 0 0", "RST 0 0 0"
OURS_DIALLED, OURS_ACCEPTED = "ACK 1 1 4096", "SYN|ACK 0 1 4096"

# (state, packet): (what is answered, the state after); all that is not here is answered with nothing and changes nothing.
TABLE: dict[tuple[str, str], tuple[str | None, State]] = {
    ("dialling", SYN_ACK): (OURS_DIALLED, State.ESTABLISHED),
    ("dialling", RST): (None, State.CLOSED),
    ("established", SYN): (OURS_ACCEPTED, State.ESTABLISHED),
    ("established", DATA): ("ACK 1 11 4095", State.ESTABLISHED),
    ("established", FIN): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("established", FIN_ACK): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("established", EARLY_FIN): ("ACK 1 1 4096", State.ESTABLISHED),
    ("established", RST): (None, State.CLOSED),
    ("accepted", SYN): (OURS_ACCEPTED, State.ESTABLISHED),
    ("accepted", DATA): ("ACK 1 11 4095", State.ESTABLISHED),
    ("accepted", FIN): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("accepted", FIN_ACK): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("accepted", EARLY_FIN): ("ACK 1 1 4096", State.ESTABLISHED),
    ("accepted", RST): (None, State.CLOSED),
    ("holding_a_fin", SYN): (OURS_ACCEPTED, State.ESTABLISHED),  # for the shell to take as a new stream instead
    ("holding_a_fin", DATA): ("FIN|ACK 1 12 0", State.TIME_WAIT),
    ("holding_a_fin", FIN): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("holding_a_fin", FIN_ACK): ("FIN|ACK 1 2 0", State.TIME_WAIT),
    ("holding_a_fin", EARLY_FIN): ("ACK 1 1 4096", State.ESTABLISHED),
    ("holding_a_fin", RST): (None, State.CLOSED),
    ("closed_by_us", FIN): ("FIN|ACK 2 2 0", State.TIME_WAIT),
    ("closed_by_us", FIN_ACK): ("FIN|ACK 2 2 0", State.TIME_WAIT),
    ("closed_by_us", EARLY_FIN): ("FIN|ACK 2 12 0", State.TIME_WAIT),
    ("closed_by_us", RST): (None, State.CLOSED),
    ("closed_by_peer", RST): (None, State.CLOSED),
}
STATES: dict[str, tuple[Callable[[], Script], State]] = {
    "dialling": (dialling, State.SYN_SENT),
    "established": (established, State.ESTABLISHED),
    "accepted": (accepted, State.ESTABLISHED),
    "holding_a_fin": (holding_a_fin, State.ESTABLISHED),
    "closed_by_us": (closed_by_us, State.FIN_WAIT),
    "closed_by_peer": (closed_by_peer, State.TIME_WAIT),
    "closed": (closed, State.CLOSED),
}


@pytest.mark.parametrize("packet", [SYN, SYN_ACK, ACK, DATA, FIN, FIN_ACK, EARLY_FIN, RST])
@pytest.mark.parametrize("name", STATES)
def test_transition(name: str, packet: str) -> None:
    make, before = STATES[name]
    script = make()
    assert script.machine.state is before
    answer, after = TABLE.get((name, packet), (None, before))
    script.gets(packet)
    script.sends(*([answer] if answer else []))
    assert script.machine.state is after
