"""Which version this is, and which it passes for. Imports nothing, so that `-version` answers at once."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
REFERENCE_VERSION: Final = "1.18.0"  # what clients see and compare; it names the dialect that we speak
