"""`python -m bench`: every benchmark there is."""

from __future__ import annotations

import sys

from bench.ipc_bench import main

if __name__ == "__main__":
    sys.exit(main())
