"""The JSON dialect of the protocol: compact, keys sorted, `<` `>` `&` and the two line separators escaped.

No known client relies on it, but it makes our output byte-comparable with recorded traffic (`spec/ipc.md` §5.10).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def dumps(value: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as UTF-8 bytes."""
    return escape(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def escape(text: str) -> bytes:
    """Return JSON text as UTF-8 bytes in this dialect. What is escaped can occur in strings only, so that is safe."""
    return text.translate(_ESCAPES).encode("utf-8", "replace")
