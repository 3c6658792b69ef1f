"""Reading JSON from clients, with the error texts that clients of this protocol are used to (`spec/ipc.md` §5.10).

The texts are informative; what matters is that any bytes at all give a value or a `DecodeError`.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from pilot_trio.errors import DecodeError

_END: Final = "unexpected end of JSON input"
_AFTER_CHARACTER: Final = {  # what the standard parser reports at a character: how the protocol's texts go on after it
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after value",
    "Extra data": "after top-level value",
    "Invalid control character at": "in string literal",
    "Invalid \\escape": "in string escape code",
}
_GO_KINDS: Final[dict[type, str]] = {str: "string", bool: "bool", int: "int", float: "float64", list: "[]", dict: "{}"}
_KINDS: Final[dict[type, str]] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
}


def parse_json(data: bytes) -> Any:
    """Read one JSON value; bytes that are not UTF-8 become U+FFFD inside strings.

    Raises:
      DecodeError: not JSON, or nested too deeply; the text has no prefix, the caller adds its own.
    """
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise DecodeError(_describe(exc)) from exc
    except RecursionError as exc:
        raise DecodeError("exceeded max depth") from exc
    except ValueError as exc:  # an integer with thousands of digits
        raise DecodeError(str(exc)) from exc


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object; `null` counts as an empty one. Raises as `parse_json`."""
    value = parse_json(data)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise mismatch(value, "object")
    return value


def parse_strings(data: bytes) -> list[str]:
    """Read an array of strings; `null` counts as an empty one, a `null` inside as an empty string. Raises as `parse_json`."""
    value = parse_json(data)
    if value is None:
        return []
    if not isinstance(value, list):
        raise mismatch(value, "[]string")
    for item in value:
        if item is not None and not isinstance(item, str):
            raise mismatch(item, "string")
    return [item or "" for item in value]


def member(record: dict[str, Any], key: str, kind: type[Any], default: Any) -> Any:
    """Return a member of the given type, `default` where it is absent or `null`; raise `DecodeError` for another type."""
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = _GO_KINDS.get(kind, kind.__name__)
        raise DecodeError(f"json: cannot unmarshal {_kind(value)} into Go struct field .{key} of type {wanted}")
    return value


def mismatch(value: object, wanted: str) -> DecodeError:
    """Return the error for a value of the wrong type."""
    return DecodeError(f"json: cannot unmarshal {_kind(value)} into Go value of type {wanted}")


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"invalid character '{name.lstrip('-')[0]}' looking for beginning of value")


def _describe(exc: json.JSONDecodeError) -> str:
    if exc.pos >= len(exc.doc) or exc.msg.startswith("Unterminated string"):
        return _END
    ending = _AFTER_CHARACTER.get(exc.msg.removesuffix(": line"), "looking for beginning of value")
    character = exc.doc[exc.pos]
    return f"invalid character {character!r} {ending}"
