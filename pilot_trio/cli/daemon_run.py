"""The daemon's life between its flags and its exit code."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import trio

from pilot_trio.cli import log_rotation, logs, runtime_file
from pilot_trio.cli.daemon_flags import BY_NAME, Value
from pilot_trio.cli.daemon_settings import Note, Settings, resolve, to_config
from pilot_trio.cli.shutdown import Watchdog, cancel_on_signal, ignore_other_signals, stop_signals
from pilot_trio.config import Config, default_home
from pilot_trio.errors import ConfigError, PilotError
from pilot_trio.serving import serve

# What grows is looked through by the collector again and again, and hardly any of it is ever garbage: next to nothing here
# makes cycles. A thousand clients that come at once are 70,000 objects; with 5,000 and three they were looked through twice
# over, in a sixth of the time that they took. Larger still would save little and pause for longer.
GC_THRESHOLD: Final = 25_000  # objects made and not freed between two collections; looking through them takes 3 ms
GC_YOUNG: Final = 1  # collections whose survivors wait to be looked through again: 75,000 objects at most, 8 ms
_STANDARD_ERROR: Final = 2

log = logging.getLogger("pilot_trio.daemon")


def run(given: Mapping[str, Value]) -> int:
    """Run a node with the flags given until a stop signal; return the exit code."""
    ignore_other_signals()
    home = default_home()
    try:
        settings = resolve(given, os.environ, home)
    except ConfigError as exc:
        early = logs.configure(_flag(given, "log-level"), _flag(given, "log-format"))
        log.error(str(exc))  # noqa: TRY400  (a traceback tells an operator nothing here)
        early.close()
        return 1
    handler = logs.configure(settings.text("log-level"), settings.text("log-format"), tick=_rotation(settings, home))
    try:
        return _run(settings, home, Watchdog(handler.close))
    finally:
        handler.close()


def settle() -> None:
    """Take what exists after the start out of the garbage collector's sight, and let it run less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, GC_YOUNG, gc.get_threshold()[2])


def leaves(exc: BaseException) -> Iterable[BaseException]:
    """Yield the exceptions in nested groups, in order."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def _run(settings: Settings, home: Path, watchdog: Watchdog) -> int:
    try:
        config, notes = to_config(settings, home)
    except ConfigError as exc:
        text = str(exc)
        log.error(text if text.startswith("-") else f"daemon start: {text}")  # noqa: TRY400  (as above)
        return 1
    _tell((*settings.notes, *notes))
    _tell_network(settings, config)
    started = trio.Event()
    try:
        trio.run(_serve_until_signal, config, home, watchdog, started)
    except BaseExceptionGroup as group:
        causes = list(leaves(group))
        expected = all(isinstance(cause, PilotError | OSError) for cause in causes)
        if expected and not started.is_set():
            log.error("daemon start: %s", causes[0])  # noqa: TRY400  (the reference's command line shows this text)
        else:
            log.exception("daemon failed: %s", causes[0])
        return 1
    finally:
        if started.is_set():
            runtime_file.remove(home, config.socket)
    return 0


async def _serve_until_signal(config: Config, home: Path, watchdog: Watchdog, started: trio.Event) -> None:
    with stop_signals(watchdog) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            await nursery.start(partial(serve, config))
            started.set()
            facts = {"registry": str(config.registry.endpoint), "beacon": ",".join(map(str, config.beacon))}
            try:
                await trio.to_thread.run_sync(runtime_file.write, home, config.socket, facts)
            except OSError as exc:
                log.warning("cannot tell the command line our registry", extra={"kv": {"error": str(exc)}})
            settle()


def _tell(notes: Iterable[Note]) -> None:
    for note in notes:
        log.warning(note.message, extra={"kv": note.kv})


def _tell_network(settings: Settings, config: Config) -> None:
    # The reference's command line takes `transport=` from this line.
    kv = {
        "transport": "udp",
        "proxy": "none",
        "transport_from": settings.sources["transport"],
        "registry": str(config.registry.endpoint),
        "registry_tls": config.registry.tls,
    }
    log.info("outbound network", extra={"kv": kv})


def _flag(given: Mapping[str, Value], name: str) -> str:
    return str(given.get(name, BY_NAME[name].default))


def _rotation(settings: Settings, home: Path) -> log_rotation.Rotation | None:
    return log_rotation.rotation_for(
        _STANDARD_ERROR,
        home,
        megabytes=settings.number("log-max-size"),
        backups=settings.number("log-max-backups"),
        chosen=settings.given("log-max-size"),
    )
