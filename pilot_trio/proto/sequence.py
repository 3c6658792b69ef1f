"""Serial number arithmetic modulo 2**32 (RFC 1982), as sequence numbers need it."""

from __future__ import annotations

from typing import Final

MODULUS: Final = 1 << 32  # sequence numbers; they wrap around after the last one
_MASK: Final = MODULUS - 1
_HALF: Final = 1 << 31


def seq_add(a: int, n: int) -> int:
    """Return the number `n` after `a`; `n` may be negative."""
    return (a + n) & _MASK


def seq_diff(a: int, b: int) -> int:
    """Return how far `a` is after `b`: negative if it is before."""
    return ((a - b + _HALF) & _MASK) - _HALF


def seq_lt(a: int, b: int) -> bool:
    """Say whether `a` comes before `b`."""
    return seq_diff(a, b) < 0


def seq_leq(a: int, b: int) -> bool:
    """Say whether `a` comes before `b` or is `b`."""
    return seq_diff(a, b) <= 0
