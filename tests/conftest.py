"""Settings for the whole suite.

Simulated overlays: 50 seeds, or those that `--seeds` names, one (`741`) or a range (`0-999`).

Chance: the order in which Trio runs tasks that are ready at the same time, and what is drawn from the module `random`, come
from a test's name, so that a red run stays red and a green one green; `--chance=1` and so on are other orders.

Hypothesis: the default profile is reproducible too; `--hypothesis-profile=fuzz` searches on, with fresh randomness and many
more examples. Deadlines per example are off: a busy machine is not a bug.

Time: see `clocks.py`.
"""

from __future__ import annotations

import gc
import inspect
import random
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

from tests.clocks import run_undisturbed

_SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=100, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile("fuzz", deadline=None, max_examples=5_000, suppress_health_check=_SLOW_MACHINE)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="0-49", metavar="FIRST-LAST", help="seeds of the simulated overlays")
    parser.addoption("--chance", default="0", metavar="SEED", help="seed of the order of tasks in every test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed_of_overlay" in metafunc.fixturenames:
        first, _, last = str(metafunc.config.getoption("--seeds")).partition("-")
        metafunc.parametrize("seed_of_overlay", range(int(first), int(last or first) + 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=run_undisturbed))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays anyway: looking through 5,000 tests took a sixth of their time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # pytest-trio has Trio order tasks by this alone, and Hypothesis seed it; there is no public name for it.
    scheduler: Any = trio._core._run
    seed = f"{item.config.getoption('--chance')} {item.nodeid}"
    scheduler._r.seed(seed)
    random.seed(seed)
