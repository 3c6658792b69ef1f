"""Runs scripts with the real Python SDK: it loads a Go library, which does not belong into this process."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import trio

SDK_TIMEOUT: Final = 90.0  # seconds for a script that takes one or two

_PRELUDE: Final = """
import json, os, sys, threading, time
from pilotprotocol import Driver, PilotError

driver = Driver(sys.argv[1])
results = {}

def error(call, *args):
    try:
        return {"no error": repr(call(*args))}
    except PilotError as exc:
        return str(exc)

"""
_EPILOGUE: Final = """
print(json.dumps(results, default=lambda value: value.decode()), flush=True)
driver.close()
"""


async def run_sdk(socket: Path, script: str, *arguments: str, timeout: float = SDK_TIMEOUT) -> dict[str, Any]:
    """Run a script in which `driver` is connected and `sys.argv[2:]` are `arguments`; return what it put into `results`."""
    with trio.fail_after(timeout):
        done = await trio.run_process(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(script) + _EPILOGUE, str(socket), *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads(done.stdout)
    assert isinstance(results, dict)
    return results
