"""`python -m bench [--quick] [--rounds N] [--only TEXT] [--markdown]`: every benchmark there is."""

from __future__ import annotations

import argparse
import sys

from bench import ipc_bench, overlay_bench


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"{overlay_bench.QUICK_ROUNDS} rounds")
    parser.add_argument("--only", default="", help="measure rows whose name contains this")
    parser.add_argument("--markdown", action="store_true", help="print the tables for the documentation")
    options = parser.parse_args()
    rounds = overlay_bench.QUICK_ROUNDS if options.quick else options.rounds
    arguments = [f"--rounds={rounds}", f"--only={options.only}", *(["--markdown"] if options.markdown else [])]
    return ipc_bench.main(arguments) | overlay_bench.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
