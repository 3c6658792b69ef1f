"""`pilot-trio-daemon`, the drop-in for the reference's `pilot-daemon` (`spec/cli.md` §9).

Only what must be quick is here: flag errors, `-help`, `-version`, and the change of the process's name. The reference's
command line runs `-help` before every start, and recognises a daemon by the name in argv[0]; a script's argv[0] is its
interpreter, so the interpreter is executed once more, in place, under the right name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from pilot_trio.cli.daemon_flags import FlagError, help_text, parse_argv
from pilot_trio.version import REFERENCE_VERSION

_RENAMED: Final = "PILOT_TRIO_DAEMON_RENAMED"  # holds the pid, so that a child of ours renames itself again
PROCESS_NAME: Final = "pilot-daemon"  # argv[0] base name that marks a daemon; protocol, `spec/cli.md` §6.3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop; return the exit code: 0, 1 (cannot start), 2 (bad flags)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given = parse_argv(words)
    except FlagError as exc:
        sys.stderr.write(f"{exc}\n{help_text(sys.argv[0])}")
        return 2
    if given.get("help"):
        sys.stderr.write(help_text(sys.argv[0]))
        return 0
    if given.get("version"):
        sys.stdout.write(f"{REFERENCE_VERSION}\n")
        return 0
    _take_name(words)
    from pilot_trio.cli.daemon_run import run  # everything heavy hangs on this import

    return run(given)


def _take_name(words: Sequence[str]) -> None:
    """Execute the interpreter again with argv[0] = `<its directory>/pilot-daemon`. The process id stays.

    The directory is kept because Python finds its virtual environment through argv[0]; no file of that name need exist.
    """
    if os.environ.pop(_RENAMED, "") == str(os.getpid()):
        return
    interpreter = sys.executable
    if not interpreter or os.path.basename(sys.orig_argv[0]) == PROCESS_NAME:  # noqa: PTH119  (no pathlib before -help)
        return
    name = os.path.join(os.path.dirname(interpreter), PROCESS_NAME)  # noqa: PTH118, PTH120
    # -P: the working directory must not become a place to import from, as -m would otherwise make it.
    arguments = [name, "-P", "-m", "pilot_trio.cli.daemon_entry", *words]
    sys.stderr.flush()
    os.execve(interpreter, arguments, {**os.environ, _RENAMED: str(os.getpid())})  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
