"""What every command needs: configuration, output, the daemon, the registry, and how to read a target."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from pilot_trio.address import Address, NetworkId, NodeId, quote
from pilot_trio.cli import config_file, runtime_file
from pilot_trio.cli.ipc_client import DaemonGone, DaemonNotRunning, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError, Output
from pilot_trio.errors import DaemonError, DecodeError, DialRefused, RegistryError, RegistryUnavailable
from pilot_trio.paths import default_socket_name
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.service_ports import SERVICE_PORTS

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM: Final = "pilot-trio"
REQUEST_TIMEOUT: Final = 5.0  # seconds that a command waits for the daemon's answer unless told otherwise
DIAL_TIMEOUT: Final = 30.0  # seconds for what crosses the network; the reference's clients wait as long
DEFAULT_REGISTRY: Final = "34.71.57.205:9000"  # the public registry; protocol default
DEFAULT_BEACON: Final = "34.71.57.205:9001"  # the public beacon; protocol default

# What others must not learn from a pasted output (`spec/cli.md` §5.2).
_ENDPOINT_KEYS: Final = frozenset({"endpoint", "real_addr", "lan_addrs", "public_addr", "stun_addr", "observed_addr"})


class Session:
    """One run of the program."""

    def __init__(self, output: Output, environ: Mapping[str, str]) -> None:
        self.output = output
        self.environ = environ
        self._config: dict[str, Any] | None = None

    @property
    def program(self) -> str:
        """What to type in another terminal to run this program: its name if the shell finds it, else its path."""
        import shlex  # for those who start something; most commands need none of them
        import shutil
        from pathlib import Path

        called = Path(sys.argv[0])
        if called.name != PROGRAM or not called.is_file():
            return PROGRAM  # run in a way that nobody types
        found = shutil.which(PROGRAM, path=self.environ.get("PATH", os.defpath))
        if found is not None and Path(found).samefile(called):
            return PROGRAM
        return shlex.quote(str(called.absolute()))

    @property
    def home(self) -> Path:
        """`$PILOT_HOME/.pilot`, else `$HOME/.pilot`."""
        from pathlib import Path  # see `pilot_trio.paths`

        return Path(self._home)

    @property
    def _home(self) -> str:
        return os.path.join(self.environ.get("PILOT_HOME") or os.path.expanduser("~"), ".pilot")  # noqa: PTH111, PTH118

    @property
    def config_path(self) -> Path:
        """Where the settings are."""
        return self.home / "config.json"

    @property
    def config(self) -> dict[str, Any]:
        """The settings; a file that cannot be read counts as empty, with a warning."""
        if self._config is None:
            self._config = {}
            try:
                self._config = config_file.load(os.path.join(self._home, "config.json"))  # noqa: PTH118
            except FileNotFoundError:
                pass
            except config_file.ConfigFileError as exc:
                self.output.note(f"warning: {exc}; using defaults")
        return self._config

    def save_config(self, changes: Mapping[str, Any]) -> None:
        """Write settings; a value of None removes its key, keys not named stay."""
        merged = {key: value for key, value in {**self.config, **changes}.items() if value is not None}
        try:
            config_file.save(self.config_path, merged)
        except OSError as exc:
            raise CliError("internal", f"write {self.config_path}: {exc.strerror or exc}") from exc
        self._config = merged

    def setting(self, key: str, variable: str, default: str = "") -> str:
        """Return a setting: environment, then config.json, then `default`."""
        return self.environ.get(variable) or str(self.config.get(key) or default)

    @property
    def socket(self) -> str:
        """The daemon's socket."""
        return self.setting("socket", "PILOT_SOCKET") or default_socket_name()

    @property
    def registry(self) -> str:
        """The registry: environment, then the one that the running node uses, then config.json, then the public one."""
        from pathlib import Path

        running = runtime_file.read(self.home, Path(self.socket)).get("registry", "")
        return self.environ.get("PILOT_REGISTRY") or running or str(self.config.get("registry") or DEFAULT_REGISTRY)

    @property
    def beacon(self) -> str:
        """The beacon, for a daemon to be started."""
        return self.setting("beacon", "PILOT_BEACON", DEFAULT_BEACON)

    def admin_token(self) -> str:
        """Return the admin token; raise `auth_required` if there is none."""
        token = self.setting("admin_token", "PILOT_ADMIN_TOKEN")
        if not token:
            hint = "set PILOT_ADMIN_TOKEN env var or admin_token in ~/.pilot/config.json"
            raise CliError("auth_required", "admin token required for this operation", hint)
        return token

    def connect(self, timeout: float = REQUEST_TIMEOUT) -> IPCClient:
        """Connect to the daemon; raise `not_running` if there is none."""
        self.output.detail(f"connecting to daemon socket {self.socket}")
        try:
            return IPCClient(self.socket, deadline_in(timeout))
        except DaemonNotRunning as exc:
            hint = f"start the daemon with: pilot-trio up, or pilot-trio daemon start  (tried {self.socket})"
            from pathlib import Path

            others = runtime_file.other_sockets(self.home, Path(self.socket))
            if others:
                # Started where XDG_RUNTIME_DIR was another or --socket was given: running, and not where we look.
                import shlex

                hint = f"one runs on another socket: export PILOT_SOCKET={shlex.quote(str(others[0]))}"
            raise CliError("not_running", "daemon is not running", hint) from exc
        except DaemonTimeout as exc:
            raise _timed_out(str(exc)) from exc

    def ask(self, client: IPCClient, code: Code, payload: bytes, label: str, timeout: float) -> dict[str, Any]:
        """Send a request whose reply is a JSON object; `label` opens the text of its errors."""
        with daemon_errors(label):
            return decode_object(client.request(code, payload, deadline_in(timeout)))

    def ask_once(self, code: Code, payload: bytes, label: str, timeout: float) -> dict[str, Any]:
        """Connect, ask, hang up."""
        with self.connect(timeout) as client:
            return self.ask(client, code, payload, label, timeout)

    def ask_registry(self, request: Mapping[str, Any], label: str) -> dict[str, Any]:
        """Ask the registry itself; `label` opens the text of its errors."""
        try:
            return self.call_registry(request)
        except RegistryUnavailable as exc:
            text = f"registry: cannot reach registry at {self.registry}: {exc.text}"
            raise CliError("connection_failed", text, registry_hint(self.registry)) from exc
        except RegistryError as exc:
            raise CliError("connection_failed", f"{label}: {exc}") from exc

    def call_registry(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the registry itself; raise `RegistryError`, or `RegistryUnavailable` if there was no answer."""
        from pilot_trio.cli import registry_client

        tls = None
        if self.config.get("registry_tls") is True:
            pinned = self.setting("registry_trust", "PILOT_REGISTRY_TRUST", "pinned") == "pinned"
            fingerprint = self.setting("registry_fingerprint", "PILOT_REGISTRY_FINGERPRINT")
            tls = registry_client.RegistryTLS(fingerprint if pinned else "")
        return registry_client.call(self.registry, request, tls)

    def resolve(self, client: IPCClient, target: str, timeout: float, *, error: str = "") -> Address:
        """Read a target: address, node id, or hostname, which the daemon resolves (`spec/cli.md` §2.2)."""
        known = literal_target(target)
        if known is not None:
            return known
        try:
            reply = decode_object(client.request(Code.RESOLVE_HOSTNAME, target.encode(), deadline_in(timeout)))
            address = Address.parse(str(reply.get("address")))
        except (DaemonError, DecodeError) as exc:
            text = error or (
                f"cannot resolve {quote(target)} — is the hostname correct and is there mutual trust? "
                "(see: pilot-trio handshake)"
            )
            raise CliError("not_found", text, f"the daemon says: {exc}") from exc
        except (DaemonTimeout, DaemonGone) as exc:
            raise _broken(f"resolve {quote(target)}", exc) from exc
        self.output.note(f"resolved {quote(target)} → {address}")
        return address

    def resolve_node(self, target: str, timeout: float) -> NodeId:
        """Read a target of which only the node matters; connect only if it has to be resolved."""
        known = literal_target(target)
        if known is not None:
            return known.node
        with self.connect(timeout) as client:
            text = f"cannot resolve {quote(target)} — check the hostname and that mutual trust exists"
            return self.resolve(client, target, timeout, error=text).node


@contextmanager
def daemon_errors(label: str) -> Generator[None]:
    """Turn what goes wrong with the daemon into the command's error, its text opening with `label`."""
    try:
        yield
    except DaemonError as exc:
        raise CliError("connection_failed", f"{label}: daemon: {exc}", hint_for(str(exc))) from exc
    except (DaemonTimeout, DaemonGone) as exc:
        raise _broken(label, exc) from exc


def hint_for(text: str) -> str:
    """Return advice for errors that pass by themselves (`spec/cli.md` §4.3)."""
    if "pending queue full" in text or "key exchange pending" in text:
        return "tunnel handshake in progress, retry in a few seconds"
    if "ephemeral ports exhausted" in text:
        return "no free local ports, close some connections"
    return ""


def dial_hint(reason: str, address: Address, port: int) -> str:
    """Return advice for a stream that could not be opened, by the reason that the daemon gives."""
    if known := hint_for(reason):
        return known
    if reason == str(DialRefused()):
        there = f"{address} answers, but nothing listens on its port {port}"
        # Who has switched a service off knows why.
        return there if port in SERVICE_PORTS else f"{there}; on that node: pilot-trio recv {port}"
    return f"check that {address} is reachable: pilot-trio ping {address}"


def registry_hint(address: str) -> str:
    """Return advice for a registry that cannot be reached."""
    return f"check that the registry is running at {address}, or set PILOT_REGISTRY"


def literal_target(target: str) -> Address | None:
    """Read an address or a node id; None means that it is a hostname, malformed addresses included."""
    with suppress(DecodeError):
        return Address.parse(target)
    if target.isascii() and target.isdigit() and len(target) <= 10 and int(target) <= 0xFFFFFFFF:
        return Address(NetworkId(0), NodeId(int(target)))
    return None


def decode_object(body: bytes) -> dict[str, Any]:
    """Read a reply's JSON object."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise CliError("internal", f"the daemon answered something that is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise CliError("internal", "the daemon answered JSON that is not an object")
    return value


def without_endpoints(value: Any) -> Any:
    """Return a copy of a JSON value without what shows where nodes are, at any depth."""
    if isinstance(value, dict):
        return {key: without_endpoints(inner) for key, inner in value.items() if key not in _ENDPOINT_KEYS}
    if isinstance(value, list):
        return [without_endpoints(inner) for inner in value]
    return value


def _broken(label: str, exc: DaemonTimeout | DaemonGone) -> CliError:
    if isinstance(exc, DaemonTimeout):
        return _timed_out(f"{label}: {exc}")
    return CliError("connection_failed", f"{label}: {exc}")


def _timed_out(text: str) -> CliError:
    return CliError("timeout", text, "is the daemon stuck? wait longer with --timeout")
