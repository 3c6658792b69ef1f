"""What people see at a terminal, and what programs see."""

from __future__ import annotations

import io
import json

import pytest

from pilot_trio.cli.output import CliError, Output, format_bytes, format_clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch: pytest.MonkeyPatch, **env: str) -> tuple[Output, Terminal, Terminal]:
    for name in ("NO_COLOR", "PILOT_NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", **env}.items():
        monkeypatch.setenv(name, value)
    out, err = Terminal(), Terminal()
    return Output(as_json=False, stdout=out, stderr=err), out, err


def test_a_terminal_gets_colours_and_fitted_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    output, out, _ = at_terminal(monkeypatch)
    output.line(output.state(good=True, text="fine"))
    output.table(("ID", "NAME"), [(1, "[red]lab")])
    text = out.getvalue()
    assert text.startswith("\x1b[32m●\x1b[0m \x1b[1mfine\x1b[0m\n")
    assert "[red]lab" in text  # what a peer chose as its name is no markup


@pytest.mark.parametrize("variable", ["NO_COLOR", "PILOT_NO_COLOR"])
def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    output, out, _ = at_terminal(monkeypatch, **{variable: "1"})
    output.line(output.state(good=False, text="off"))
    output.table(("ID", "NAME"), [(1, "lab"), (10, "x")])
    assert out.getvalue() == "○ off\nID  NAME\n1   lab\n10  x\n"


def test_progress_is_drawn_beside_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    output, out, err = at_terminal(monkeypatch)
    with output.progress("bench", 100) as advance:
        advance(50)
        advance(100)
    assert out.getvalue() == ""
    assert "bench" in err.getvalue()


def test_a_pipe_sees_no_progress_and_no_colour() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(as_json=False, stdout=out, stderr=err)
    with output.progress("bench", 100) as advance:
        advance(50)
    output.line(output.styled("x", "bold"))
    assert (out.getvalue(), err.getvalue()) == ("x\n", "")


def test_programs_get_sorted_compact_escaped_objects_and_no_asides() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(as_json=True, stdout=out, stderr=err)
    output.note("for people")
    output.result({"b": "<x>", "a": 1}, lambda: output.line("for people"))
    output.error(CliError("timeout", "late & gone", "wait", extra={"results": {"n": 1}}))
    assert out.getvalue() == '{"data":{"a":1,"b":"\\u003cx\\u003e"},"status":"ok"}\n'
    assert json.loads(err.getvalue()) == {
        "code": "timeout", "error": "late & gone", "hint": "wait", "message": "late & gone", "results": {"n": 1},
        "status": "error",
    }  # fmt: skip


def test_without_a_text_form_people_get_indented_json() -> None:
    out = io.StringIO()
    Output(as_json=False, stdout=out).result({"b": 1, "a": "ä"})
    assert out.getvalue() == '{\n  "a": "ä",\n  "b": 1\n}\n'


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    output = Output(as_json=False, stdout=out)
    output.data(b"text")
    output.data(b"\xff\x00")
    assert raw.getvalue() == b"text\n\xff\x00"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1000, "1000 B"), (1024, "1.0 KB"), (2048, "2.0 KB"), (5 << 20, "5.0 MB"), (1 << 42, "4.0 TB")],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_spans_read_well() -> None:
    assert format_clock(3723.9) == "01:02:03"
