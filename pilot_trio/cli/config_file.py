"""`config.json`: one flat object that the command line writes and the daemon reads (`spec/cli.md` §3.2)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_BYTES_MAX: Final = 1 << 20  # a settings file above 1 MiB is something else, given by mistake


class ConfigFileError(Exception):
    """The file cannot be used; the text says which file, what is wrong and what to do."""


def load(path: Path | str) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
      FileNotFoundError: there is none.
      ConfigFileError: it cannot be read, or does not hold a JSON object.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (see `pilot_trio.paths`)
            body = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ConfigFileError(f"open {path}: {(exc.strerror or str(exc)).lower()}; check its permissions") from exc
    if len(body) > CONFIG_BYTES_MAX:
        raise ConfigFileError(f"{path} is larger than {CONFIG_BYTES_MAX} bytes; is it the right file?")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise ConfigFileError(f"{path} is not valid JSON: {exc}; correct it or move it away") from exc
    if not isinstance(value, dict):
        raise ConfigFileError(f'{path} must hold a JSON object such as {{"log-level": "info"}}, not a {_kind(value)}')
    return value


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file as a whole: readers see the old or the new one, also after a crash. Mode 0600, directory 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = path.resolve()  # a symlink stays one; what it points to is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_KINDS: dict[type, str] = {list: "list", str: "text", bool: "boolean", type(None): "null"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "number")
