"""How the registry says no, and what it hides when it does (`spec/registry.md` §2.2).

Texts are matched by clients and by eyes, so they are exact. Masking keeps internal ones from JSON clients: a text that has
none of the telling substrings leaves as `request failed`.
"""

from __future__ import annotations

from typing import Final

from pilot_trio.errors import PilotError
from pilot_trio.wire.registry import Message

MASKED: Final = "request failed"
_TELLING: Final = (
    "rate limited",
    "enterprise feature",
    "expired",
    "already",
    "not a member",
    "cannot",
    "too many",
    "too long",
    "not found",
    "invalid",
    "require",
    "signature",
)


class Refused(PilotError):
    """The request is refused; `str()` is the unmasked text. Raised by handlers before they change anything."""

    def __init__(self, text: str, *, masked: bool = True) -> None:
        super().__init__(text)
        self.masked = masked  # False: JSON clients see the text whatever it says


def mask(text: str) -> str:
    """Return what a JSON client sees of an error text."""
    return text if any(part in text for part in _TELLING) else MASKED


def error_message(text: str) -> Message:
    """Return the failure message for a text, as it stands."""
    return {"type": "error", "error": text}
