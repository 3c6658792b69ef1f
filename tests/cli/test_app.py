"""Around the commands: help, usage, settings, completion, start-up weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.cli import config_keys
from pilot_trio.cli.app import MODULES
from pilot_trio.cli.daemon_flags import markdown_table
from pilot_trio.cli.output import CliError
from tests.cli.conftest import Cli, relative_weight
from tests.cli.fake_daemon import FakeDaemon

OPERATE = Path(__file__).parents[2] / "docs" / "howto" / "operate.md"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_without_a_command_the_usage_goes_to_standard_error_with_two(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: pilot-trio")


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_alone_goes_to_standard_output_and_names_every_command(cli: Cli, word: str) -> None:
    done = cli(word)
    assert (done.code, done.err) == (0, "")
    for name in MODULES:
        assert f"\n  {name} " in done.out


def test_help_is_a_command_too(cli: Cli) -> None:
    assert cli("help").out == cli("--help").out
    assert cli("help", "ping").err == cli("ping", "--help").err
    assert cli("help", "network", "kick").err == cli("network", "kick", "--help").err


@pytest.mark.parametrize(
    "words", [("appstore", "list"), ("extras", "gateway", "list"), ("policy", "get", "--net", "1")]
)
def test_a_command_that_only_the_original_has_is_answered_politely(cli: Cli, words: tuple[str, ...]) -> None:
    name = words[1] if words[0] == "extras" else words[0]
    found = cli("--json", *words).error
    assert (found["code"], found["message"]) == ("not_supported", f"{name}: pilot-trio has no such command")
    assert "did you mean" not in found["hint"]
    assert cli(*words).code == 1


@pytest.mark.parametrize("name", [*MODULES, "network kick", "daemon start"])
def test_help_after_a_command_goes_to_standard_error_with_zero(cli: Cli, name: str) -> None:
    words = [] if name in ("network", "daemon") else ["whatever", "--count=x"]
    done = cli(*name.split(), *words, "--help")
    assert (done.code, done.out) == (0, "")
    assert done.err.split("\n")[0].startswith(f"Usage: pilot-trio {name}")


def test_the_daemon_in_the_foreground_has_a_help_of_its_own(cli: Cli) -> None:
    done = cli("daemon", "run", "-help")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("Usage of ")


def test_an_unknown_command_ends_with_two_for_people(cli: Cli) -> None:
    done = cli("helth")
    assert done.code == 2
    assert "did you mean: pilot-trio health" in done.err
    assert cli("--json", "helth").code == 1


def test_version_names_both(cli: Cli) -> None:
    assert cli("--json", "version").data == {"version": "0.1.0", "protocol": "1.18.0"}
    assert cli("version").out == "pilot-trio 0.1.0 (speaks 1.18.0)\n"


def test_context_describes_every_command(cli: Cli) -> None:
    data = cli("--json", "context").data
    assert {
        "version",
        "commands",
        "extras",
        "error_codes",
        "environment",
        "global_flags",
        "config_file",
        "note",
    } == set(data)
    assert set(MODULES) - {"daemon", "network"} <= set(data["commands"])
    assert "network kick" in data["commands"]
    one = cli("--json", "context", "network", "kick").data
    assert one["args"][:2] == ["<network_id>", "<node_id|address|hostname>"]
    assert set(one) == {"args", "description", "returns"}
    assert cli("--json", "context", "bogus").error["code"] == "not_found"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_code_for_the_shell(cli: Cli, shell: str) -> None:
    assert "_PILOT_TRIO_COMPLETE" in cli("completion", shell).out


@pytest.mark.parametrize(("words", "want"), [("pilot-trio set-h", "set-hostname"), ("pilot-trio ping --co", "--count")])
def test_the_shell_is_told_how_words_go_on(home: Path, words: str, want: str) -> None:
    env = {**os.environ, "HOME": str(home), "_PILOT_TRIO_COMPLETE": "bash_complete", "COMP_WORDS": words}
    env["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run(
        [sys.executable, "-c", "from pilot_trio.cli import main; main()"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert want in done.stdout


@pytest.mark.usefixtures("daemon")
def test_a_command_for_a_program_loads_neither_trio_nor_tables(home: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); from pilot_trio.cli.app import run; run(['--json', 'info']);"
        "slow = {'trio', 'attrs', 'attr', 'click', 'rich', 'cryptography', 'ssl', 'hashlib', 'asyncio', 'inspect', 'pathlib'};"
        "print(sorted(slow & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ.copy(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert home.exists()


@pytest.mark.usefixtures("daemon")
def test_a_command_starts_quickly() -> None:
    command = [sys.executable, "-c", "from pilot_trio.cli import main; main()", "--json", "health"]
    # The figure that counts is in the benchmark; this catches a heavy import. Measured 1.8; 7 with Trio.
    assert relative_weight(command, os.environ.copy()) < 4


def test_init_writes_the_first_settings_and_keeps_others(cli: Cli, home: Path) -> None:
    path = home / ".pilot" / "config.json"
    path.parent.mkdir()
    path.write_text('{"consent": {"reviews": true}}')
    data = cli("--json", "init", "--hostname", "gamma", "--registry", "r:1").data
    assert data == {
        "config_path": str(path), "registry": "r:1", "beacon": "34.71.57.205:9001", "socket": "/tmp/pilot.sock",
        "hostname": "gamma",
    }  # fmt: skip
    stored = json.loads(path.read_text())
    assert stored == {
        "beacon": "34.71.57.205:9001", "consent": {"reviews": True}, "hostname": "gamma", "registry": "r:1",
        "socket": "/tmp/pilot.sock",
    }  # fmt: skip


def test_config_shows_effective_values_and_hides_credentials(cli: Cli, home: Path) -> None:
    done = cli("--json", "config", "--set", "proxy=http://user:pass@proxy:3128")
    assert done.data == {"key": "proxy", "value": "http://***@proxy:3128"}
    data = cli("--json", "config").data
    assert data["proxy"] == "http://***@proxy:3128"
    assert data["socket"] == f"{home}/s"
    assert data["pid_file"] == f"{home}/.pilot/pilot.pid"
    assert cli("config").out.startswith("config_path  ")


def test_config_set_stores_typed_values(cli: Cli, home: Path) -> None:
    values = {"public": True, "syn_rate_limit": 5, "keepalive": "45s", "hostname": "gamma"}
    for key, text in (("public", "true"), ("syn_rate_limit", "5"), ("keepalive", "45s"), ("hostname", "gamma")):
        assert cli("--json", "config", "--set", f"{key}={text}").data == {"key": key, "value": values[key]}
    path = home / ".pilot" / "config.json"
    assert json.loads(path.read_text()) == values
    assert cli("--json", "config", "--set", "proxy=").data == {"key": "proxy", "value": ""}


def test_pilot_home_replaces_the_home(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_HOME", str(home / "other"))
    assert cli("--json", "init").data["config_path"] == f"{home}/other/.pilot/config.json"


def test_a_corrupt_config_is_told_of_and_defaults_are_used(cli: Cli, home: Path, daemon: FakeDaemon) -> None:
    del daemon
    (home / ".pilot").mkdir()
    (home / ".pilot" / "config.json").write_text("{")
    done = cli("network", "role", "1", "5")
    assert "is not valid JSON" in done.err
    assert cli("--json", "health").code == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x", "usage: pilot-trio config --set key=value"),
        ("a=b", 'config: unknown key "a"'),
        ("pprof=x", 'config: unknown key "pprof"'),
        ("public=yes", "config: public must be true or false"),
        ("keepalive=5", "config: keepalive must be a non-negative duration"),
        ("keepalive=-5s", "config: keepalive must be a non-negative duration"),
        ("hostname=A_b", "config: hostname must be 1-63 lowercase letters, digits or internal hyphens"),
        ("registry=", "config: registry must not be empty"),
        ("registry=x", "config: registry must be a host:port address"),
        ("registry=:5", "config: registry must be a host:port address"),
        ("listen=abc", "config: listen must be a host:port address"),
        ("syn_rate_limit=-1", "config: syn_rate_limit must be a non-negative integer"),
        ("log_level=foo", "config: invalid log_level"),
        ("log_format=foo", "config: log_format must be text or json"),
        ("webhook=abc", "config: invalid URL for webhook"),
        ("webhook=http://a@b/", "config: invalid URL for webhook"),
        ("webhook=http://[", "config: invalid URL for webhook"),
        ("compat_beacon=http://x", "config: invalid URL for compat_beacon"),
        ("registry_trust=x", "config: registry_trust must be pinned or system"),
        ("registry_fingerprint=zz", "config: registry_fingerprint must be a SHA-256 hex digest"),
        ("security_profile=x", "config: security_profile must be compatible or enterprise"),
        ("transport=foo", "config: invalid transport \"foo\": must be 'udp', 'compat' or 'auto'"),
        ("proxy=foo:bar", 'config: invalid proxy "foo:bar": use auto, off, or an http:// or https:// proxy URL'),
    ],
)
def test_config_refuses_what_cannot_work_with_the_words_of_the_reference(cli: Cli, text: str, error: str) -> None:
    found = cli("--json", "config", "--set", text).error
    assert (found["code"], found["message"]) == ("invalid_argument", error)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("listen", ":0", ":0"),
        ("beacon", "a:1,b:2", "a:1,b:2"),
        ("transport", "", None),
        ("proxy", "", None),
        ("log_max_size", "0", 0),
        ("idle_timeout", "0", "0"),
        ("registry_fingerprint", "AB" * 32, "AB" * 32),
    ],
)
def test_config_takes_what_works(key: str, text: str, value: Any) -> None:
    assert config_keys.check(key, text) == value


def test_a_config_that_cannot_be_written_is_told_of(cli: Cli, home: Path) -> None:
    (home / ".pilot").write_text("in the way")
    assert cli("--json", "init").error["code"] == "internal"


def test_an_error_knows_its_text() -> None:
    assert str(CliError("not_found", "no")) == "no"


def test_the_manual_has_the_table_of_the_daemons_flags() -> None:
    assert markdown_table() in OPERATE.read_text()
