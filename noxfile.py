"""Every check of the project. `nox` runs what CI runs; `nox -l` lists the rest."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "typing", "trio_typing", "docs", "tests", "simulation", "interop"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"

# Who sets this would have every worker, and every program that a test starts, compile everything again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The order of sets of words is one chance less: a red run stays red, and a green one green.
os.environ.setdefault("PYTHONHASHSEED", "0")

PYTHONS = ["3.11", "3.12", "3.13"]

OVERLAY_SEEDS = "tests/testing/test_overlay_seeds.py"
SEEDS = 1_000  # of simulated overlays in every run
ON_EACH = "not interop and not simulation and not real_time"  # of the tests: what may differ between interpreters
ON_ONE = "(simulation or real_time) and not interop"
INTEROP_WORKERS = 4  # on any machine: those tests wait for programs most of the time, and two cores are busy with four
SEEDS_NIGHTLY = 20_000  # new ones every night: an hour and a half of computing
TODAY = datetime.datetime.now(datetime.UTC).date().toordinal()
CHANCE = {"PYTHONHASHSEED": "random"}  # for those who look for what nobody has seen


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install("ruff>=0.8")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy strict over everything, pyright strict over the package."""
    session.install("-e", ".[test,lint]")
    session.run("mypy")
    session.run("pyright")


@nox.session
def trio_typing(session: nox.Session) -> None:
    """Users who still have trio-typing installed can type-check programs written against us.

    It shadows Trio's own inline types, so it has a session of its own and looks at a user's program, not at the package.
    """
    session.install("-e", ".", "mypy>=1.13", "trio-typing[mypy]>=0.10")
    session.run("mypy", "--config-file", "tests/typing/trio_typing.ini", "tests/typing/user_program.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """What needs no foreign program and may differ between interpreters, on each that is found."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", "-m", ON_EACH, *session.posargs)


@nox.session
def simulation(session: nox.Session) -> None:
    """Simulated networks: scenarios, shared paths, and a thousand seeds, on one interpreter; and what only waits."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", "-m", ON_ONE, f"--seeds=0-{SEEDS - 1}", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Simulated overlays with seeds that nobody has seen; a test's name says which seed repeats it."""
    session.install("-e", ".[test]")
    first = SEEDS + TODAY * SEEDS_NIGHTLY
    seeds = f"--seeds={first}-{first + SEEDS_NIGHTLY - 1}"
    session.run("pytest", "-n", "auto", OVERLAY_SEEDS, seeds, *session.posargs, env=CHANCE)


@nox.session
def interop(session: nox.Session) -> None:
    """Against the real 1.18.0 programs."""
    session.install("-e", ".[test,interop]")
    # A file's tests share programs and ports that they chose, so a file stays in one worker. Some take minutes, which is no
    # reason to dump stacks: a test's own time limit does.
    session.run(
        *("pytest", "tests/interop", "-n", str(INTEROP_WORKERS), "--dist", "loadfile", "--no-loadscope-reorder"),
        *("-m", "interop", "-o", "faulthandler_timeout=0"),
        *session.posargs,
        env={"PILOT_TRIO_INTEROP_REQUIRED": "1"},  # else a run without the programs would skip everything and pass
    )


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage, with a floor."""
    session.install("-e", ".[test]", "coverage[toml]>=7.6")
    session.run("coverage", "run", "-m", "pytest", "-m", "not interop", *session.posargs)
    session.run("coverage", "report", "--fail-under=85")


@nox.session
def fuzz(session: nox.Session) -> None:
    """The Hypothesis tests with fresh randomness and many more examples, all tests with tasks in another order."""
    session.install("-e", ".[test]")
    options = ("--hypothesis-profile=fuzz", f"--chance={TODAY}", "--timeout=3600")
    session.run("pytest", "-m", "not interop", *options, *session.posargs, env=CHANCE)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the manual; a warning is an error."""
    session.install("-e", ".[docs]")
    out = Path("docs", "_build")
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "docs/generate.py")
    session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", str(out / "html"))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the real Go daemon in the same run; prints ratios."""
    session.install("-e", ".[interop]")
    session.run("python", "-m", "bench", *session.posargs)
