"""How the program names itself, and where it looks for a daemon."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from pilot_trio.cli import runtime_file
from pilot_trio.cli.output import Output
from pilot_trio.cli.session import Session
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon


def program_called_as(monkeypatch: pytest.MonkeyPatch, called: Path, *, search: Path) -> str:
    monkeypatch.setattr(sys, "argv", [str(called), "up"])
    return Session(Output(as_json=False), {"PATH": str(search)}).program


def installed_in(directory: Path) -> Path:
    directory.mkdir()
    program = directory / "pilot-trio"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_a_program_that_the_shell_finds_is_named_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = installed_in(tmp_path / "bin")
    assert program_called_as(monkeypatch, program, search=program.parent) == "pilot-trio"


def test_a_program_that_the_shell_does_not_find_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = installed_in(tmp_path / "a b")
    another = installed_in(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    for search in (another.parent, tmp_path / "nowhere"):
        assert program_called_as(monkeypatch, Path("a b/pilot-trio"), search=search) == f"'{program}'"


def test_a_program_that_was_run_as_a_module_has_its_usual_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_called_as(monkeypatch, tmp_path / "__main__.py", search=tmp_path) == "pilot-trio"
    assert program_called_as(monkeypatch, tmp_path / "gone" / "pilot-trio", search=tmp_path) == "pilot-trio"


def test_version_is_where_everybody_looks_first(cli: Cli) -> None:
    assert cli("--version").out == cli("version").out
    assert cli("--version").code == 0


def test_a_daemon_on_another_socket_is_pointed_at(cli: Cli, home: Path) -> None:
    other = home / "elsewhere.sock"
    note = runtime_file.write(home / ".pilot", other, {"registry": "127.0.0.1:9000"})
    assert cli("--json", "health").error["hint"] == f"one runs on another socket: export PILOT_SOCKET={other}"
    note.write_text(note.read_text().replace(str(os.getpid()), "999999999"))  # it is gone, its note is not
    assert cli("--json", "health").error["hint"].startswith("start the daemon")
    note.write_text("junk")
    assert cli("--json", "health").error["hint"].startswith("start the daemon")


def test_a_second_node_is_refused_by_the_number_of_the_first(cli: Cli, daemon: FakeDaemon) -> None:
    del daemon
    error = cli("--json", "up").error
    assert error["code"] == "already_exists"
    assert f"(pid {os.getpid()})" in error["message"]


def test_a_socket_whose_daemon_does_not_accept_is_taken_too(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot_trio.cli.commands.up.REQUEST_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(home / "s"))
        busy.listen(0)
        first.connect(str(home / "s"))
        assert cli("--json", "up").error["code"] == "already_exists"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("up --log-level loud", '--log-level: "loud" is none of debug, info, warn, error'),
        ("rendezvous --log-format xml", '--log-format: "xml" is none of text, json'),
    ],
)
def test_words_about_the_log_that_mean_nothing_are_refused(cli: Cli, words: str, text: str) -> None:
    error = cli("--json", *words.split(), "--rendezvous-registry=127.0.0.1:0").error
    assert (error["code"], error["message"]) == ("invalid_argument", text)


@pytest.mark.parametrize(
    ("flag", "what"), [("--registry-addr", "registry"), ("--beacon-addr", "beacon"), ("--http", "page")]
)
def test_an_address_that_is_not_ours_is_named(cli: Cli, flag: str, what: str) -> None:
    others = {"--registry-addr": "127.0.0.1:0", "--beacon-addr": "127.0.0.1:0", flag: "192.0.2.1:9000"}
    words = [f"{name}={value}" for name, value in others.items()]
    error = cli("--json", "rendezvous", "--store", "memory", *words).error
    assert error["message"] == f"cannot run: {what} cannot listen on 192.0.2.1:9000: Cannot assign requested address"
