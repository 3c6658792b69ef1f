"""Settings and the program itself: `init`, `config`, `version`, `context`, `completion`."""

from __future__ import annotations

from typing import Any, Final

from pilot_trio.address import quote
from pilot_trio.cli import config_keys
from pilot_trio.cli.framework import PilotSubgroup, argument, command, describe, option
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import DEFAULT_BEACON, DEFAULT_REGISTRY, PROGRAM, Session
from pilot_trio.paths import default_socket
from pilot_trio.version import REFERENCE_VERSION, __version__

_SECTION: Final = "Settings"
_CATALOGUE_VERSION: Final = "1.4"  # of the shape of `context`; protocol, `spec/cli.md` §6.1

_ERROR_CODES: Final = {  # `spec/cli.md` §4.3
    "invalid_argument": "bad input or usage; do not retry",
    "not_found": "hostname, file or message not found; do not retry",
    "already_exists": "a daemon runs already, or is being started",
    "not_running": "no daemon on the socket; start it",
    "connection_failed": "dial, registry or IPC request failed; retry may help",
    "timeout": "deadline passed; retry with a longer --timeout",
    "trust_required": "refusing a tunnel to an untrusted private node; handshake first",
    "auth_required": "admin token missing",
    "broadcast_failed": "the daemon refused a broadcast",
    "not_implemented": "the daemon lacks the command",
    "internal": "unexpected local failure",
}
_ENVIRONMENT: Final = {  # `spec/cli.md` §3.1
    "PILOT_SOCKET": "daemon socket",
    "PILOT_REGISTRY": "registry host:port",
    "PILOT_BEACON": "beacon host:port, for daemon start",
    "PILOT_HOME": "replaces $HOME for .pilot/config.json, pid file and log",
    "PILOT_ADMIN_TOKEN": "admin token",
    "PILOT_DAEMON_BIN": "daemon program, for daemon start",
    "NO_COLOR": "no colours",
}


@command("init", section=_SECTION)
@option("registry", "registry to use", "host:port", default=DEFAULT_REGISTRY)
@option("beacon", "beacon to use", "host:port", default=DEFAULT_BEACON)
@option("hostname", "name of this node", default="")
@option("socket", "daemon socket", "path")
def init(session: Session, registry: str, beacon: str, hostname: str, socket: str | None) -> None:
    """Write the first settings; others are kept."""
    values = {"registry": registry, "beacon": beacon, "socket": socket or str(default_socket())}
    session.save_config({**values, **({"hostname": hostname} if hostname else {})})
    session.output.result({"config_path": str(session.config_path), **values, "hostname": hostname})


@command("config", section=_SECTION)
@option("set", "change a setting", "key=value")
def config(session: Session, set: str | None) -> None:  # noqa: A002  (the flag's name)
    """Show the settings, or change one."""
    if set is not None:
        key, equals, text = set.partition("=")
        if not equals:
            raise CliError("invalid_argument", "usage: pilot-trio config --set key=value")
        value = config_keys.check(key, text)
        session.save_config({key: value})
        session.output.result({"key": key, "value": config_keys.redact({key: "" if value is None else value})[key]})
        return
    data: dict[str, Any] = {
        **config_keys.redact(session.config),
        "config_path": str(session.config_path),
        "pid_file": str(session.home / "pilot.pid"),
        "log_file": str(session.home / "pilot.log"),
    }
    data.setdefault("registry", session.registry)
    data.setdefault("socket", session.socket)

    def human() -> None:
        width = max(map(len, data))
        for key in sorted(data, key=lambda key: (key != "config_path", key)):
            session.output.line(f"{key.ljust(width)}  {data[key]}")

    session.output.result(data, human)


@command("version", section=_SECTION)
def version(session: Session) -> None:
    """Print the versions of this program and of the protocol that it speaks."""
    data = {"version": __version__, "protocol": REFERENCE_VERSION}
    session.output.result(data, lambda: session.output.line(f"pilot-trio {__version__} (speaks {REFERENCE_VERSION})"))


@command("context", section=_SECTION)
@argument("words", "command", required=False, many=True)
def context(session: Session, words: tuple[str, ...]) -> None:
    """Describe every command in JSON, for programs that call this one."""
    commands = _catalogue()
    name = " ".join(words)
    if name:
        if name not in commands:
            text = f"unknown command {quote(name)} — valid: {', '.join(sorted(commands))}"
            raise CliError("not_found", text)
        session.output.result(commands[name])
        return
    session.output.result(
        {
            "version": _CATALOGUE_VERSION,
            "commands": commands,
            "extras": {},
            "error_codes": _ERROR_CODES,
            "environment": _ENVIRONMENT,
            "global_flags": {"--json": "one JSON object as output", "--verbose": "say what happens inside"},
            "config_file": str(session.config_path),
            "note": 'Success: {"status":"ok","data":{…}} on stdout. Failure: {"status":"error","code":…,"message":…} on stderr.',
        }
    )


@command("completion", section=_SECTION)
@argument("shell", "bash|zsh|fish")
def completion(session: Session, shell: str) -> None:
    """Print the code that lets a shell complete this program's commands.

    For bash: eval "$(pilot-trio completion bash)" in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    from pilot_trio.cli.app import COMPLETE_VARIABLE, root

    found = get_completion_class(shell)
    if found is None:
        raise CliError("invalid_argument", f"no completion for {quote(shell)}", "available: bash, zsh, fish")
    session.output.line(found(root(), {}, PROGRAM, COMPLETE_VARIABLE).source())


def _catalogue() -> dict[str, dict[str, Any]]:
    from pilot_trio.cli.app import MODULES, load

    found: dict[str, dict[str, Any]] = {}
    for name in MODULES:
        declared = load(name)
        if isinstance(declared, PilotSubgroup):
            for inner, member in declared.commands.items():
                found[f"{name} {inner}"] = describe(member)
        elif declared is not None:
            found[name] = describe(declared)
    return found


COMMANDS: Final = {c.name: c for c in (init, config, version, context, completion)}
