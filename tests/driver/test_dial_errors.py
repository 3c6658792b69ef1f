from __future__ import annotations

import pytest

from pilot_trio.driver.dial_errors import dial_error
from pilot_trio.errors import (
    DaemonError,
    DialCancelled,
    DialRefused,
    DialTimeout,
    NoRoute,
    PilotError,
    PortNotAllowed,
    PortsExhausted,
)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("connection refused", DialRefused),
        ("dial timeout", DialTimeout),
        ("dial timeout: key exchange with peer did not complete", DialTimeout),
        ("context canceled", DialCancelled),
        ("ephemeral ports exhausted", PortsExhausted),
        ("port 7 not allowed by network 3 policy", PortNotAllowed),
        ("resolve node 9: registry: no such node\nreally", NoRoute),
        ("no tunnel to node 9", NoRoute),
        ("dial: per-client connection quota (4096) reached", DaemonError),
        ("something new", DaemonError),
        ("", DaemonError),
    ],
)
def test_every_text_has_its_class_and_stays_as_it_was(text: str, kind: type[PilotError]) -> None:
    error = dial_error(DaemonError(text))
    assert type(error) is kind
    assert str(error) == text
