"""Settings for the whole suite.

Simulated overlays: 50 seeds, or those that `--seeds` names, one (`741`) or a range (`0-999`).

Hypothesis: the default profile is reproducible (a red run stays red); `--hypothesis-profile=fuzz` searches on, with fresh
randomness and many more examples. Deadlines per example are off: a busy machine is not a bug.
"""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

_SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=100, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile("fuzz", deadline=None, max_examples=5_000, suppress_health_check=_SLOW_MACHINE)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="0-49", metavar="FIRST-LAST", help="seeds of the simulated overlays")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed_of_overlay" in metafunc.fixturenames:
        first, _, last = str(metafunc.config.getoption("--seeds")).partition("-")
        metafunc.parametrize("seed_of_overlay", range(int(first), int(last or first) + 1))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays anyway: looking through 5,000 tests took a sixth of their time."""
    gc.collect()
    gc.freeze()
