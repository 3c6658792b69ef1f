"""The two programs: `pilot-trio` for people and scripts, `pilot-trio-daemon` for service managers.

Start-up time is part of the interface, so nothing is imported here before it is needed: no event loop for a command that
asks the daemon one question, no tables for a program that reads JSON.
"""

from __future__ import annotations


def main() -> int:
    """Run `pilot-trio` and return its exit code."""
    from pilot_trio.cli.app import run

    return run()
