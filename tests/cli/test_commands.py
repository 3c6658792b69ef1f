"""Every command against a scripted daemon: JSON keys, texts, exit codes. Expected values were seen from pilotctl 1.18.0."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.cli.app import MODULES
from pilot_trio.wire import ipc
from pilot_trio.wire.ipc import Code
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import ADDRESS, CONNECTION_ROW, INFO, NODE, PEER, FakeDaemon, answers, fails, silent

TARGET = str(ADDRESS)


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("disconnect 3", {"conn_id": 3}),
        ("connect 5 8 --message hi", {"port": 8, "response": "hi", "sent": "hi", "target": TARGET}),
        ("send 5 8 --data hi", {"port": 8, "response": "hi", "sent": "hi", "target": TARGET}),
        ("send alpha 8 --data hi", {"port": 8, "response": "hi", "sent": "hi", "target": TARGET}),
        ("send 5 11 --data hi", {"port": 11, "response": "", "sent": "hi", "target": TARGET}),
        ("recv 1234", {"messages": [{"bytes": 5, "data": "hello", "port": 1234, "seq": 0}], "timeout": False}),
        ("recv 10 --timeout 20ms", {"messages": [], "timeout": True}),
        ("recv 10 --timeout 0", {"messages": [], "timeout": True}),
        ("dgram 5 8 --data x", {"bytes": 1, "confirmed": True, "port": 8, "target": TARGET}),
        ("listen 5 --timeout 20ms --count 1", {"messages": [], "timeout": True}),
        ("find alpha", {"address": TARGET, "hostname": "alpha", "node_id": 5, "public": True}),
        ("set-hostname gamma", {"hostname": "gamma", "node_id": 5}),
        ("clear-hostname", {"hostname": ""}),
        ("set-public", {"node_id": 5, "type": "set_visibility_ok", "visibility": "public"}),
        ("set-private", {"node_id": 5, "type": "set_visibility_ok", "visibility": "private"}),
        ("set-tags a b", {"node_id": 5, "tags": ["a", "b"]}),
        ("extras set-tags a b", {"node_id": 5, "tags": ["a", "b"]}),
        ("clear-tags", {"tags": []}),
        ("register", {"node_id": 5, "address": TARGET, "public_key": "AAAA"}),
        ("deregister", {"type": "deregister_ok"}),
        ("rotate-key", {"address": TARGET, "node_id": 5, "public_key": "BBBB"}),
        ("handshake beta please", {"node_id": 6, "status": "sent"}),
        ("handshake beta --wait 1s", {"node_id": 6, "status": "sent", "trusted": True}),
        (
            "pending",
            {"pending": [{"justification": "hi there", "node_id": 6, "public_key": "", "received_at": 1700000000}]},
        ),
        ("approve 6", {"node_id": 6, "status": "approved"}),
        ("reject beta no", {"node_id": 6, "status": "rejected"}),
        ("untrust 6", {"node_id": 6}),
        (
            "peers",
            {
                "encrypted": 1,
                "peers": [{"authenticated": True, "encrypted": True, "node_id": 6, "relay": False}],
                "total": 1,
            },
        ),
        ("peers --search 7", {"encrypted": 0, "peers": [], "total": 0}),
        ("connections", {"connections": [{**CONNECTION_ROW, "relay": False, "relay_reason": ""}], "total": 1}),
        ("network join 1", {"address": "1:0001.0000.0005", "network_id": 1, "type": "join_network_ok"}),
        ("network leave 1", {"network_id": 1, "type": "leave_network_ok"}),
        ("network invite 1 beta", {"network_id": 1, "target_node_id": 6, "type": "invite_to_network_ok"}),
        ("network accept 1", {"accepted": True, "network_id": 1, "type": "respond_invite_ok"}),
        ("network reject 1", {"accepted": False, "network_id": 1, "type": "respond_invite_ok"}),
        ("sign-request --audience x --body hi", {"address": TARGET, "envelope": "pilot-req-v1|x", "signature": "c2ln"}),
        ("set-webhook http://127.0.0.1:9/x", {"applied": True, "webhook": "http://127.0.0.1:9/x"}),
        ("clear-webhook", {"applied": True, "webhook": ""}),
    ],
)
@pytest.mark.usefixtures("daemon")
def test_a_command_gives_the_json_of_the_reference(cli: Cli, words: str, data: dict[str, Any]) -> None:
    done = cli("--json", *words.split())
    assert done.data == data
    assert done.err == ""
    assert done.code == 0
    assert cli(*words.split()).code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("disconnect", "invalid_argument", "usage: pilot-trio disconnect <conn_id> [--timeout <dur>]"),
        (
            "disconnect abc",
            "invalid_argument",
            'invalid connection ID: strconv.ParseUint: parsing "abc": invalid syntax',
        ),
        ("disconnect -1", "invalid_argument", 'invalid connection ID: strconv.ParseUint: parsing "-1": invalid syntax'),
        ("ping x --timeout abc", "invalid_argument", 'invalid duration for --timeout: time: invalid duration "abc"'),
        (
            "ping x --count abc",
            "invalid_argument",
            'invalid integer for --count: strconv.Atoi: parsing "abc": invalid syntax',
        ),
        (
            "ping nowhere",
            "not_found",
            'cannot resolve "nowhere" — is the hostname correct and is there mutual trust? (see: pilot-trio handshake)',
        ),
        ("ping 0:0000.0000.00001", "not_found", 'cannot resolve "0:0000.0000.00001" — is the hostname correct'),
        ("bench x abc", "invalid_argument", 'invalid size: strconv.ParseFloat: parsing "abc": invalid syntax'),
        ("bench 5 0", "invalid_argument", 'size must be a positive number of MB, got "0"'),
        ("bench 5 nan", "invalid_argument", 'size must be a positive number of MB, got "nan"'),
        ("bench 5 5000", "invalid_argument", "size 5000 MB exceeds maximum of 4096 MB"),
        ("connect 5 abc", "invalid_argument", 'invalid port "abc": strconv.ParseUint: parsing "abc": invalid syntax'),
        ("connect 5 9 --message hi", "connection_failed", f"cannot connect to {TARGET} port 9: connection refused"),
        ("connect 5 10 --message hi --timeout 20ms", "timeout", "no response within 20ms"),
        ("send 5 8", "invalid_argument", "--data is required"),
        ("send 5 8 --data=", "invalid_argument", "--data is required"),
        (
            "send 5 70000 --data x",
            "invalid_argument",
            'invalid port "70000": strconv.ParseUint: parsing "70000": value out of range',
        ),
        ("recv abc", "invalid_argument", 'invalid port "abc": strconv.ParseUint: parsing "abc": invalid syntax'),
        ("recv 7", "connection_failed", "listen: bind: daemon: port 7 already bound"),
        ("dgram 5 8", "invalid_argument", "--data is required"),
        ("find zz", "not_found", 'cannot find "zz" — hostname not found or no mutual trust'),
        ("lookup zz", "not_found", 'cannot resolve "zz" — check the hostname and that mutual trust exists'),
        ("lookup 5", "connection_failed", "registry: cannot reach registry at 127.0.0.1:1: connection refused"),
        ("set-tags a b c d", "invalid_argument", "set-tags: maximum 3 tags allowed, got 4"),
        (
            "handshake zz",
            "not_found",
            'resolve "zz": resolve_hostname: daemon: resolve_hostname: registry: hostname not found',
        ),
        ("approve 7", "not_found", "approve: node 7 has not asked for trust"),
        ("reject 7", "not_found", "reject: node 7 has not asked for trust"),
        (
            "trust --limit x",
            "invalid_argument",
            'invalid integer for --limit: strconv.Atoi: parsing "x": invalid syntax',
        ),
        ("network", "invalid_argument", "usage: pilot-trio network <subcommand>"),
        ("network x", "invalid_argument", "unknown network subcommand: x"),
        (
            "network join x",
            "invalid_argument",
            'invalid network_id "x": strconv.ParseUint: parsing "x": invalid syntax',
        ),
        ("network create --name x", "auth_required", "admin token required for this operation"),
        ("network create", "invalid_argument", "usage: pilot-trio network create --name"),
        ("network kick 1 6", "auth_required", "admin token required for this operation"),
        ("sign-request", "invalid_argument", "usage: pilot-trio sign-request --audience"),
        ("sign-request --audience= --body x", "invalid_argument", "usage: pilot-trio sign-request --audience"),
        (
            "sign-request --audience x",
            "invalid_argument",
            "sign-request: exactly one of --body-file, --body-hash, --body is required",
        ),
        (
            "sign-request --audience x --body-file /nonexistent",
            "invalid_argument",
            "sign-request: read --body-file: /nonexistent: No such file",
        ),
        ("verify-request", "invalid_argument", "usage: pilot-trio verify-request --envelope"),
        ("set-webhook ftp://x", "invalid_argument", "webhook URL must start with http:// or https://"),
        ("broadcast 1 hi", "auth_required", "admin token required for this operation"),
        ("daemon", "invalid_argument", "usage: pilot-trio daemon <subcommand>"),
        ("daemon bogus", "invalid_argument", "unknown daemon subcommand: bogus"),
        ("daemon start --transport foo", "invalid_argument", 'daemon start: invalid transport "foo"'),
        ("bogus", "invalid_argument", "unknown command: bogus"),
        ("completion tcsh", "invalid_argument", 'no completion for "tcsh"'),
        (
            "up --rendezvous-registry nowhere --socket /tmp/none",
            "invalid_argument",
            "--rendezvous-registry: 'nowhere' is not",
        ),
        ("rendezvous --registry-addr nowhere", "invalid_argument", "rendezvous: 'nowhere' is not host:port"),
    ],
)
@pytest.mark.usefixtures("daemon")
def test_a_failure_has_the_code_and_text_of_the_reference(cli: Cli, words: str, code: str, message: str) -> None:
    done = cli("--json", *words.split())
    assert done.code == 1
    assert done.error["code"] == code
    assert done.error["message"].startswith(message)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"up", "rendezvous", "daemon", "network", "completion"}))
def test_without_a_daemon_every_command_that_needs_one_says_so(cli: Cli, name: str) -> None:
    words = {
        "disconnect": "3", "ping": "x", "traceroute": "x", "bench": "x", "prefer-direct": "x", "connect": "x abc",
        "send": "x abc --data y", "recv": "5", "dgram": "x 5 --data y", "listen": "5", "broadcast": "1 hi", "find": "x",
        "lookup": "x", "set-hostname": "x", "set-tags": "x", "handshake": "x", "approve": "5", "reject": "5", "untrust": "5",
        "sign-request": "--audience x --body y", "verify-request": "--envelope x --signature y",
        "send-message": "x --data y", "send-file": "x y", "publish": "x t --data y", "subscribe": "x t",
    }  # fmt: skip
    local = {"init", "config", "version", "context", "set-webhook", "clear-webhook", "inbox", "received"}
    done = cli("--json", name, *words.get(name, "http://x/" if name == "set-webhook" else "").split())
    if name in local:
        assert done.code == 0
    elif name == "broadcast":
        assert done.error["code"] == "auth_required"
    else:
        assert done.error["code"] == "not_running"
        assert done.error["message"] == "daemon is not running"


@pytest.mark.parametrize(
    "command", ["info", "peers", "find x", "pending", "set-public", "network list", "disconnect 3"]
)
def test_a_daemon_that_does_not_answer_costs_no_more_than_the_timeout(
    cli: Cli, daemon: FakeDaemon, command: str
) -> None:
    daemon.replies = dict.fromkeys(Code, silent)
    done = cli("--json", *command.split(), "--timeout", "20ms")
    assert done.code == 1
    assert done.error["code"] == "timeout"


@pytest.mark.parametrize("command", ["info", "health", "recv 5", "ping 5 --count 1"])
def test_a_daemon_that_hangs_up_is_no_crash(cli: Cli, daemon: FakeDaemon, command: str) -> None:
    def close_all(_payload: bytes) -> list[bytes]:
        daemon.close()
        return []

    daemon.replies = dict.fromkeys(Code, close_all)
    done = cli("--json", *command.split())
    assert done.code == 1
    assert done.error["code"] == "connection_failed"


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff"])
def test_a_reply_that_is_no_object_is_an_internal_error(cli: Cli, daemon: FakeDaemon, body: bytes) -> None:
    daemon.replies[Code.INFO] = lambda _: [ipc.encode_frame(Code.INFO_OK, body)]
    assert cli("--json", "info").error["code"] == "internal"


def test_what_is_not_the_protocol_is_told_of(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.INFO] = lambda _: [b"HTTP/1.1 400 Bad Request\r\n"]
    assert "not the protocol" in cli("--json", "info").error["message"]


def test_an_error_of_the_daemon_is_shown_with_command_and_label(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.HANDSHAKE] = fails("handshake revoke: node 1 was not trusted")
    done = cli("--json", "untrust", "1")
    assert done.error["message"] == "untrust: revoke: daemon: handshake revoke: node 1 was not trusted"
    assert cli("untrust", "1").err == "error: untrust: revoke: daemon: handshake revoke: node 1 was not trusted\n"


@pytest.mark.parametrize(
    ("text", "word"), [("dial: pending queue full", "retry"), ("ephemeral ports exhausted", "local ports")]
)
def test_passing_troubles_come_with_advice(cli: Cli, daemon: FakeDaemon, text: str, word: str) -> None:
    daemon.replies[Code.DIAL] = fails(text)
    assert word in cli("--json", "send", "5", "8", "--data", "x").error["hint"]


@pytest.mark.usefixtures("daemon")
def test_info_hides_endpoints_at_any_depth(cli: Cli) -> None:
    data = cli("--json", "info").data
    assert set(data) == set(INFO) - {"endpoint"}
    assert "endpoint" not in json.dumps(data)
    assert data["networks"] == []
    assert "alpha · 0:0000.0000.0005 · node 5" in cli("info").out


@pytest.mark.usefixtures("daemon")
def test_people_get_lines_and_tables(cli: Cli) -> None:
    assert cli("health").out.startswith("● pilot-daemon ok\n  uptime    00:02:07 · 1 connection(s)\n")
    assert cli("peers", "--all").out.splitlines()[-1].split() == ["6", "yes", "yes", "direct"]
    assert "0:0000.0000.0006:49152" in cli("connections").out
    assert cli("trust", "--limit", "1").out.splitlines()[-1] == "… 1 more: --limit 0"
    assert cli("network", "list").out.splitlines()[1].split() == ["1", "lab", "open", "2"]
    assert cli("recv", "1234").out == "hello\n"
    assert cli("send", "5", "11", "--data", "hi").err == "sent 2 bytes (no response)\n"
    assert cli("recv", "10", "--timeout", "20ms").err == "timeout\n"
    assert cli("ping", "beta", "--count", "1").err == 'resolved "beta" → 0:0000.0000.0006\n'


@pytest.mark.parametrize(
    ("port", "reason", "hint"),
    [
        (
            4444,
            "connection refused",
            f"{TARGET} answers, but nothing listens on its port 4444; on that node: pilot-trio recv 4444",
        ),
        (7, "connection refused", f"{TARGET} answers, but nothing listens on its port 7"),
        (4444, "dial timeout", f"check that {TARGET} is reachable: pilot-trio ping {TARGET}"),
        (4444, "tunnel: key exchange pending", "tunnel handshake in progress, retry in a few seconds"),
    ],
)
def test_advice_goes_by_what_was_in_the_way(cli: Cli, daemon: FakeDaemon, port: int, reason: str, hint: str) -> None:
    daemon.replies[Code.DIAL] = fails(reason)
    assert cli("--json", "connect", "5", str(port), "--message", "x").error["hint"] == hint
    assert cli("--json", "send", "5", str(port), "--data", "x").error["hint"] == hint


def test_people_see_the_path_of_peers_and_connections_and_why(cli: Cli, daemon: FakeDaemon) -> None:
    peer = {"node_id": 6, "encrypted": True, "authenticated": True, "relay": True, "relay_reason": "direct path silent"}
    rows = [CONNECTION_ROW, {**CONNECTION_ROW, "remote_addr": TARGET}]
    daemon.replies[Code.INFO] = answers(Code.INFO_OK, INFO | {"peer_list": [peer], "conn_list": rows})
    one, other = cli("connections").out.splitlines()[-2:]
    assert one.endswith("relay (direct path silent)")
    assert other.endswith("local")
    assert cli("peers", "--all").out.splitlines()[-1].endswith("relay (direct path silent)")


@pytest.mark.usefixtures("daemon")
def test_trust_is_sorted_newest_first_and_filtered(cli: Cli) -> None:
    data = cli("--json", "trust").data
    assert [row["node_id"] for row in data["trusted"]] == [6, 7]
    assert data["total"] == 2
    assert cli("--json", "trust", "--limit", "1").data["trusted"][0]["node_id"] == 6
    assert cli("--json", "trust", "--search", "7").data == {"total": 1, "trusted": [data["trusted"][1]]}


@pytest.mark.usefixtures("daemon")
def test_ping_counts_and_measures(cli: Cli) -> None:
    data = cli("--json", "ping", TARGET, "--count", "1").data
    assert data["target"] == data["to"] == TARGET
    assert data["timeout"] is False
    (row,) = data["results"]
    assert set(row) == {"seq", "bytes", "rtt_ms"}
    assert row["bytes"] == 6
    traced = cli("--json", "ping", "5", "--count", "1", "--trace").data
    assert set(traced["results"][0]) == {
        "seq",
        "bytes",
        "rtt_ms",
        "dial_ms",
        "echo_ms",
        "to_server_ms",
        "from_server_ms",
    }
    assert traced["results"][0]["bytes"] == 20
    assert all(set(step) == {"label", "ms"} for step in traced["trace"])


def test_ping_can_keep_one_stream(cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot_trio.cli.commands.probing.PING_PAUSE", 0.0)
    rows = cli("--json", "ping", "5", "--count", "3", "--reuse-conn").data["results"]
    assert [row.get("reused") for row in rows] == [None, True, True]
    assert daemon.codes().count(Code.DIAL) == 1
    assert daemon.codes().count(Code.CLOSE) == 1


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("count", ["0", "-1"])
def test_ping_without_attempts_is_no_failure(cli: Cli, count: str) -> None:
    done = cli("--json", "ping", "5", "--count", count)
    assert (done.code, done.data["results"]) == (0, [])


def test_ping_fails_when_every_attempt_did(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.DIAL] = fails("connection refused")
    done = cli("--json", "ping", "5", "--count", "1")
    assert done.code == 1
    assert done.data["results"] == [{"seq": 0, "error": "dial: daemon: connection refused"}]


def test_ping_honours_its_timeout(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.DIAL] = silent
    done = cli("--json", "ping", "5", "--timeout", "20ms")
    assert done.code == 1
    assert done.data["timeout"] is True
    assert done.data["results"] == [{"seq": 0, "error": "timeout"}]


@pytest.mark.usefixtures("daemon")
def test_traceroute_takes_any_target_and_three_samples(cli: Cli) -> None:
    data = cli("--json", "traceroute", "alpha").data
    assert set(data) == {"target", "setup_ms", "rtt_samples"}
    assert [row["bytes"] for row in data["rtt_samples"]] == [7, 7, 7]


def test_traceroute_whose_dial_fails_still_succeeds(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.DIAL] = fails("dial timeout")
    done = cli("--json", "traceroute", "5")
    assert (done.code, done.data["error"]) == (0, "dial: daemon: dial timeout")


@pytest.mark.usefixtures("daemon")
def test_bench_counts_what_comes_back(cli: Cli) -> None:
    data = cli("--json", "bench", "5", "0.1").data
    assert set(data) == {
        "target", "sent_bytes", "recv_bytes", "send_duration_ms", "total_duration_ms", "send_mbps", "total_mbps", "complete",
    }  # fmt: skip
    assert (data["sent_bytes"], data["recv_bytes"], data["complete"]) == (104857, 104857, True)
    assert "Echoed:" in cli("bench", "5", "0.1").out


@pytest.mark.parametrize(("port_reply", "code"), [(silent, "timeout"), (None, "connection_failed")])
def test_a_bench_that_stays_incomplete_fails_with_its_figures(
    cli: Cli, daemon: FakeDaemon, port_reply: Any, code: str
) -> None:
    ended: list[bytes] = []

    def end(payload: bytes) -> list[bytes]:
        ended.append(payload)
        return [ipc.encode_conn(Code.CLOSE_OK, ipc.decode_conn(payload)[0])]

    daemon.replies[Code.SEND] = port_reply or end
    done = cli("--json", "bench", "5", "0.1", "--timeout", "100ms")
    assert done.error["code"] == code
    assert done.error["results"]["complete"] is False
    assert done.error["results"]["recv_bytes"] == 0


def test_recv_keeps_what_came_when_the_sender_waits_for_an_answer(cli: Cli, daemon: FakeDaemon) -> None:
    def bind(payload: bytes) -> list[bytes]:
        port = ipc.decode_bind(payload)
        pushes = [
            ipc.encode_accept(port, 9, PEER, 49152),
            ipc.encode_conn(Code.RECV, 9, b"hel"),
            ipc.encode_conn(Code.RECV, 9, b"lo"),
        ]
        return [ipc.encode_port(Code.BIND_OK, port), *pushes]

    daemon.replies[Code.BIND] = bind
    row = {"seq": 0, "port": 5, "data": "hello", "bytes": 5}
    assert cli("--json", "recv", "5", "--timeout", "50ms").data == {"messages": [row], "timeout": False}
    twice = cli("--json", "recv", "5", "--count", "2", "--timeout", "50ms").data
    assert twice == {"messages": [row], "timeout": True}  # the second stream never came
    assert cli("--json", "recv", "5", "--idle", "20ms").data == {"messages": [row], "timeout": False}
    assert cli("recv", "5", "--idle", "20ms").out == "hello\n"


@pytest.mark.usefixtures("daemon")
def test_binary_data_is_also_given_in_base64(cli: Cli) -> None:
    (row,) = cli("--json", "recv", "12").data["messages"]
    assert row["data"] == "\ufffd\x00"
    assert base64.b64decode(row["data_b64"]) == b"\xff\x00"


def datagram(data: bytes, port: int = 5) -> bytes:
    return ipc.encode_recv_from(PEER, 49152, port, data)


def test_listen_filters_by_port_and_counts(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.greeting = [datagram(b"other", 6), datagram(b"one"), datagram(b"\xff"), datagram(b"three")]
    data = cli("--json", "listen", "5", "--count", "2", "--timeout", "5s").data
    assert data == {
        "messages": [
            {"src_addr": str(PEER), "src_port": 49152, "data": "one", "bytes": 3},
            {"src_addr": str(PEER), "src_port": 49152, "data": "\ufffd", "bytes": 1, "data_b64": "/w=="},
        ],
        "timeout": False,
    }


def test_listen_without_a_count_prints_bare_objects(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.greeting = [datagram(b"one"), datagram(b"two")]
    done = cli("--json", "listen", "5", "--timeout", "200ms")
    assert done.code == 0
    assert [json.loads(line)["data"] for line in done.out.splitlines()] == ["one", "two"]
    text = cli("listen", "5", "--timeout", "200ms")
    assert text.out == f"[{PEER}:49152] one\n[{PEER}:49152] two\n"


def test_dgram_falls_back_when_the_daemon_is_old(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.SEND_TO_CONFIRM] = fails("unknown command: 0x39")
    daemon.replies[Code.SEND_TO] = silent
    data = cli("--json", "dgram", "5", "8", "--data", "x").data
    assert data["confirmed"] is False
    assert ipc.decode_send_to(daemon.wait_for(Code.SEND_TO)) == (ADDRESS, 8, b"x")


@pytest.mark.parametrize(("size", "fits"), [(65_535, True), (65_536, False)])
@pytest.mark.usefixtures("daemon")
def test_the_size_of_a_datagram_is_bounded(cli: Cli, size: int, fits: bool) -> None:
    done = cli("--json", "dgram", "5", "8", "--data", "x" * size)
    if fits:
        assert done.data["bytes"] == size
    else:
        assert done.error["message"].startswith(f"datagram is {size} bytes; the daemon refuses more than 65535")


def test_a_broadcast_carries_the_token(cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "secret")
    assert cli("--json", "broadcast", "1", "hi").data == {"network_id": 1, "port": 1000, "bytes": 2}
    assert ipc.decode_broadcast(daemon.requests[-1][1]) == (1, 1000, b"secret", b"hi")
    daemon.replies[Code.BROADCAST] = fails("broadcast: broadcast denied: invalid admin token")
    error = cli("--json", "broadcast", "1", "hi").error
    assert (error["code"], error["message"]) == (
        "broadcast_failed",
        "daemon: broadcast: broadcast denied: invalid admin token",
    )


def test_a_private_stranger_is_refused_unless_told_otherwise(cli: Cli, daemon: FakeDaemon) -> None:
    error = cli("--json", "ping", "9", "--count", "1").error
    assert error["code"] == "trust_required"
    assert error["message"] == (
        "cannot verify peer visibility (registry unreachable: connection refused); refusing tunnel to untrusted node"
    )
    assert error["hint"].startswith("run: pilot-trio handshake 0:0000.0000.0009")
    assert Code.DIAL not in daemon.codes()
    assert cli("--json", "ping", "9", "--count", "1", "--no-auto-handshake").code == 0


def test_a_daemon_without_the_trust_question_is_asked_no_further(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.HANDSHAKE] = fails("handshake: unknown sub-command 0x07")
    assert cli("--json", "ping", "5", "--count", "1").error["code"] == "trust_required"


def test_an_invalid_signature_is_a_result_with_exit_one(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.VERIFY_ENVELOPE] = answers(Code.VERIFY_ENVELOPE_OK, {"valid": False, "reason": "bad"})
    done = cli("--json", "verify-request", "--envelope", "x", "--signature", "y")
    assert (done.code, done.data) == (1, {"valid": False, "reason": "bad"})


def test_a_request_body_is_hashed_here(cli: Cli, daemon: FakeDaemon, home: Path) -> None:
    (home / "body").write_bytes(b"hi")
    digest = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
    for words in (("--body", "hi"), ("--body-file", str(home / "body")), ("--body-hash", digest)):
        cli("--json", "sign-request", "--audience", "x", *words)
        assert json.loads(daemon.requests[-1][1]) == {"audience": "x", "body_hash": digest}


def test_a_webhook_that_the_daemon_refuses_is_not_kept(cli: Cli, daemon: FakeDaemon, home: Path) -> None:
    daemon.replies[Code.SET_WEBHOOK] = fails("URL cannot target link-local address 169.254.1.1")
    assert cli("--json", "set-webhook", "http://169.254.1.1/").error["code"] == "connection_failed"
    assert not (home / ".pilot" / "config.json").exists()


def test_a_hostname_is_kept_and_forgotten_with_the_other_settings_untouched(
    cli: Cli, daemon: FakeDaemon, home: Path
) -> None:
    del daemon
    path = home / ".pilot" / "config.json"
    path.parent.mkdir()
    path.write_text('{"consent": {"telemetry": false}}')
    cli("set-hostname", "gamma")
    assert json.loads(path.read_text()) == {"consent": {"telemetry": False}, "hostname": "gamma"}
    cli("clear-hostname")
    assert json.loads(path.read_text()) == {"consent": {"telemetry": False}}


def test_register_says_when_the_registry_has_not_answered(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.INFO] = answers(Code.INFO_OK, {**INFO, "node_id": 0})
    assert cli("--json", "register").error["code"] == "connection_failed"


@pytest.mark.usefixtures("daemon")
def test_verbose_names_the_socket(cli: Cli, home: Path) -> None:
    assert cli("health", "-v").err == f"connecting to daemon socket {home}/s\n"


@pytest.mark.usefixtures("daemon")
def test_an_unknown_flag_is_ignored_and_people_are_told(cli: Cli) -> None:
    assert cli("--json", "ping", "5", "--count", "1", "--cont", "3").code == 0
    assert "has no flag --cont" in cli("ping", "5", "--count", "1", "--cont", "3").err


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("words", [("find", "x\udcff"), ("set-hostname", "x\udcff"), ("handshake", "5", "x\udcff")])
def test_a_text_that_is_not_utf8_is_refused_in_words(cli: Cli, words: tuple[str, ...]) -> None:
    found = cli("--json", *words).error
    assert (found["code"], found["message"]) == ("invalid_argument", '"x\\xff" is not UTF-8')


@pytest.mark.usefixtures("daemon")
def test_words_too_many_are_ignored_and_people_are_told(cli: Cli) -> None:
    assert cli("--json", "register", ":0").data["node_id"] == NODE
    assert cli("register", ":0").err == 'warning: register does not need ":0"; ignored\n'


def test_prefer_direct_needs_a_daemon_that_knows_it(cli: Cli, daemon: FakeDaemon) -> None:
    assert cli("--json", "prefer-direct", "beta").data["had_tunnel"] is True
    daemon.replies[Code.PREFER_DIRECT] = fails("unknown command: 0x2D")
    assert cli("--json", "prefer-direct", "6").error["code"] == "not_implemented"


def test_daemon_status_tells_what_answers(cli: Cli, daemon: FakeDaemon, home: Path) -> None:
    data = cli("--json", "daemon", "status").data
    assert data == {
        "running": True, "responsive": True, "pid": 0, "pid_file": f"{home}/.pilot/pilot.pid", "socket": f"{home}/s",
        "node_id": NODE, "address": TARGET, "hostname": "alpha", "uptime_secs": 127, "peers": 1, "connections": 1,
    }  # fmt: skip
    assert cli("daemon", "status").out.startswith("● pilot-daemon running\n")
    check = cli("daemon", "status", "--check")
    assert check == (0, "", "")
    daemon.replies[Code.INFO] = silent
    hanging = cli("--json", "daemon", "status", "--timeout", "20ms").data
    assert (hanging["running"], hanging["responsive"]) == (False, False)
    assert cli("daemon", "status", "--check", "--timeout", "20ms").code == 1


def test_daemon_status_of_nothing(cli: Cli, home: Path) -> None:
    data = cli("--json", "daemon", "status").data
    assert data == {
        "running": False, "responsive": False, "pid": 0, "pid_file": f"{home}/.pilot/pilot.pid", "socket": f"{home}/s",
    }  # fmt: skip
    assert cli("daemon", "status").out.startswith("○ pilot-daemon stopped\n")
    assert cli("daemon", "status", "--check") == (1, "", "")
    assert cli("--json", "daemon", "stop").error["message"] == "daemon is not running"


def test_a_daemon_of_somebody_else_is_not_stopped(cli: Cli, daemon: FakeDaemon) -> None:
    del daemon
    assert (
        cli("--json", "daemon", "stop").error["message"].startswith("daemon socket is active but PID file is missing")
    )
    assert cli("--json", "daemon", "start").error["code"] == "already_exists"
    assert cli("--json", "up").error["code"] == "already_exists"
