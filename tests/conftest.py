"""Settings for the whole suite.

Hypothesis: the default profile is reproducible (a red run stays red); `--hypothesis-profile=fuzz` searches on, with fresh
randomness and many more examples. Deadlines per example are off: a busy machine is not a bug.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=100, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile("fuzz", deadline=None, max_examples=5_000, suppress_health_check=_SLOW_MACHINE)
settings.load_profile("default")
