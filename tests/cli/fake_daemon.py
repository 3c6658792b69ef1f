"""A scripted daemon on a Unix socket, in threads: enough to drive a command line that uses plain sockets.

Node 5 answers. Port 7 echoes, port 8 answers `hi` once and closes, port 9 refuses, port 10 never answers; a bound port gets
one stream with `hello` at once. Replies can be replaced per command code, delayed, or left out.

However busy the machine, `patient_poll` lets a command run into its deadline only when the daemon has nothing more to say.
"""

from __future__ import annotations

import fcntl
import json
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.wire import ipc
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import Code

NODE = NodeId(5)
ADDRESS = Address(NetworkId(0), NODE)
PEER = Address(NetworkId(0), NodeId(6))
Reply = Callable[[bytes], Iterable[bytes]]

PATIENCE: Final = 20.0  # seconds for a thread of the daemon to get its turn

CONNECTION_ROW: dict[str, Any] = {
    "id": 3, "local_port": 7, "remote_port": 49152, "remote_addr": str(PEER), "state": "ESTABLISHED", "cong_win": 65536,
    "in_flight": 0, "srtt_ms": 1.5, "rttvar_ms": 0.5, "ssthresh": 1, "in_recovery": False, "unacked": 0, "ooo_buf": 0,
    "peer_recv_win": 65536, "recv_win": 65536, "bytes_sent": 1, "bytes_recv": 2, "segs_sent": 3, "segs_recv": 4,
    "retransmits": 0, "fast_retx": 0, "sack_recv": 0, "sack_sent": 0, "dup_acks": 0,
}  # fmt: skip
PEER_ROW = {"node_id": 6, "endpoint": "192.0.2.1:4000", "encrypted": True, "authenticated": True, "relay": False}
INFO: dict[str, Any] = {
    "node_id": NODE, "address": str(ADDRESS), "hostname": "alpha", "endpoint": "192.0.2.5:4000", "beacon_addr": "127.0.0.1:9001",
    "email": "a@b", "version": "1.18.0", "transport": "udp", "motd": "", "public_key": "AAAA", "identity": True, "encrypt": True,
    "uptime_secs": 127, "peers": 1, "encrypted_peers": 1, "authenticated_peers": 1, "relay_peer_count": 0, "connections": 1,
    "ports": 4, "bytes_sent": 1000, "bytes_recv": 2048, "pkts_sent": 3, "pkts_recv": 4, "handshake_pending_count": 0,
    "accept_queue_drops": 0, "webhook_queue_dropped": 0, "webhook_circuit_skips": 0, "tunnel_encryption_success": 0,
    "tunnel_encryption_failure": 0, "networks": None, "features": ["reply_window", "dgram_confirm"], "peer_list": [PEER_ROW],
    "conn_list": [CONNECTION_ROW],
}  # fmt: skip
HEALTH: dict[str, Any] = {
    "status": "ok", "uptime_seconds": 127, "peers": 1, "encrypted_peers": 1, "authenticated_peers": 1, "relay_peer_count": 0,
    "connections": 1, "bytes_sent": 1000, "bytes_recv": 2048, "beacon_addr": "127.0.0.1:9001", "handshake_pending_count": 0,
    "accept_queue_drops": 0, "webhook_queue_dropped": 0, "webhook_circuit_skips": 0,
}  # fmt: skip


def ok(code: Code, body: dict[str, Any]) -> bytes:
    """Return a reply frame with a JSON body."""
    return ipc.encode_frame(code, json.dumps(body).encode())


def answers(code: Code, body: dict[str, Any]) -> Reply:
    """Always give one JSON reply."""
    return lambda _payload: [ok(code, body)]


def fails(text: str) -> Reply:
    """Always give an error frame."""
    return lambda _payload: [ipc.encode_error(text)]


def silent(_payload: bytes) -> Iterable[bytes]:
    """Never answer."""
    return []


class FakeDaemon:
    """`replies` maps a code to what is sent for it; `requests` collects what arrived, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[int, bytes]] = []
        self.replies: dict[int, Reply] = self._defaults()
        self._arrival = threading.Condition()
        self.greeting: list[bytes] = []  # frames pushed to every client at once
        self._ports: dict[int, int] = {}  # {connection: port}
        self._next_conn = 1
        self._greeted = 0  # clients
        self._busy = 0  # threads between taking a request and having sent its reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._clients: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def codes(self) -> list[Code]:
        """Return the codes of the requests so far."""
        return [Code(code) for code, _ in self.requests]

    def wait_for(self, code: Code) -> bytes:
        """Return the payload of the last request of a kind that gets no reply, once it has arrived."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: code in self.codes(), timeout=PATIENCE)
            return [payload for found, payload in self.requests if found == code][-1]

    def settle(self, sock: socket.socket, clients: int) -> None:
        """Wait until so many clients were greeted, and everything that came from `sock` was answered or left unanswered."""
        by = time.monotonic() + PATIENCE
        while self._greeted < clients or _unread(sock) or self._busy:  # in this order: who reads is busy before
            assert time.monotonic() < by
            time.sleep(0.001)

    def close(self) -> None:
        """Stop listening and hang up on everybody."""
        for sock in (self._listener, *self._clients):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it, which closes it
        self._listener.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5)

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        frames = FrameDecoder(IPC_FRAME_MAX)
        with suppress(OSError), client:
            client.sendall(b"".join(self.greeting))
            with self._arrival:
                self._greeted += 1
            while True:
                select.select([client], [], [])
                with self._at_work():
                    data = client.recv(65536)
                    if not data:
                        return
                    frames.feed(data)
                    while (frame := frames.next_frame()) is not None:
                        self._answer(client, frame[0], frame[1:])

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._arrival:
            self._busy += 1
        try:
            yield
        finally:
            with self._arrival:
                self._busy -= 1

    def _answer(self, client: socket.socket, code: int, payload: bytes) -> None:
        with self._arrival:
            self.requests.append((code, payload))
            self._arrival.notify_all()
        reply = self.replies.get(code, fails(f"unknown command: 0x{code:02X}"))
        client.sendall(b"".join(reply(payload)))

    def _defaults(self) -> dict[int, Reply]:
        return {
            Code.INFO: answers(Code.INFO_OK, INFO),
            Code.HEALTH: answers(Code.HEALTH_OK, HEALTH),
            Code.RESOLVE_HOSTNAME: self._resolve,
            Code.HANDSHAKE: self._handshake,
            Code.DIAL: self._dial,
            Code.SEND: self._send,
            Code.CLOSE: lambda p: [ipc.encode_conn(Code.CLOSE_OK, ipc.decode_close(p))],
            Code.BIND: self._bind,
            Code.SEND_TO_CONFIRM: self._send_to,
            Code.SET_HOSTNAME: lambda p: [ok(Code.SET_HOSTNAME_OK, {"hostname": p.decode(), "node_id": NODE})],
            Code.SET_VISIBILITY: lambda p: [
                ok(
                    Code.SET_VISIBILITY_OK,
                    {"type": "set_visibility_ok", "node_id": NODE, "visibility": "public" if p[0] else "private"},
                )
            ],
            Code.SET_TAGS: lambda p: [
                ok(Code.SET_TAGS_OK, {"node_id": NODE, "tags": json.loads(p), "type": "set_tags_ok"})
            ],
            Code.SET_WEBHOOK: lambda p: [ok(Code.SET_WEBHOOK_OK, {"webhook": p.decode()})],
            Code.DEREGISTER: answers(Code.DEREGISTER_OK, {"type": "deregister_ok"}),
            Code.ROTATE_KEY: answers(
                Code.ROTATE_KEY_OK, {"node_id": NODE, "address": str(ADDRESS), "public_key": "BBBB"}
            ),
            Code.BROADCAST: lambda _: [ipc.encode_frame(Code.BROADCAST_OK)],
            Code.NETWORK: self._network,
            Code.PREFER_DIRECT: answers(
                Code.PREFER_DIRECT_OK,
                {
                    "node_id": 6,
                    "had_tunnel": True,
                    "was_relay_active": True,
                    "was_relay_pinned": False,
                    "pila_pushed": True,
                    "resolve_error": "",
                },
            ),
            Code.SIGN_ENVELOPE: answers(
                Code.SIGN_ENVELOPE_OK,
                {
                    "type": "sign_envelope_ok",
                    "address": str(ADDRESS),
                    "envelope": "pilot-req-v1|x",
                    "signature": "c2ln",
                },
            ),
            Code.VERIFY_ENVELOPE: answers(
                Code.VERIFY_ENVELOPE_OK,
                {
                    "type": "verify_envelope_ok",
                    "valid": True,
                    "node_id": 6,
                    "address": str(PEER),
                    "verified_via": "cache",
                    "trusted": True,
                },
            ),
        }

    def _resolve(self, payload: bytes) -> Iterable[bytes]:
        nodes = {b"alpha": ADDRESS, b"beta": PEER}
        if payload not in nodes:
            return [ipc.encode_error("resolve_hostname: registry: hostname not found")]
        address = nodes[payload]
        body = {"type": "resolve_hostname_ok", "node_id": address.node, "address": str(address), "public": True}
        return [ok(Code.RESOLVE_HOSTNAME_OK, {**body, "hostname": payload.decode()})]

    def _handshake(self, payload: bytes) -> Iterable[bytes]:
        sub, body = payload[0], payload[1:]
        node = struct.unpack("!I", body[:4])[0] if len(body) >= 4 else 0
        replies: dict[int, dict[str, Any]] = {
            1: {"node_id": node, "status": "sent"},
            2: {"node_id": node, "status": "approved"},
            3: {"node_id": node, "status": "rejected"},
            4: {"pending": [{"node_id": 6, "justification": "hi there", "public_key": "", "received_at": 1700000000}]},
            5: {
                "trusted": [
                    {"node_id": 7, "approved_at": 1600000000, "mutual": False, "network": 0, "public_key": ""},
                    {"node_id": 6, "approved_at": 1700000000, "mutual": True, "network": 0, "public_key": ""},
                ]
            },
            6: {"node_id": node, "status": "revoked"},
            7: {"node_id": node, "trusted": node != 9},
        }
        return [ok(Code.HANDSHAKE_OK, replies[sub])]

    def _network(self, payload: bytes) -> Iterable[bytes]:
        replies: dict[int, dict[str, Any]] = {
            1: {"type": "list_networks_ok", "networks": [{"id": 1, "name": "lab", "join_rule": "open", "members": 2}]},
            2: {"type": "join_network_ok", "network_id": 1, "address": "1:0001.0000.0005"},
            3: {"type": "leave_network_ok", "network_id": 1},
            4: {"type": "list_nodes_ok", "nodes": [{"node_id": 5, "hostname": "alpha", "public": True}]},
            5: {"type": "invite_to_network_ok", "network_id": 1, "target_node_id": 6},
            6: {
                "type": "poll_invites_ok",
                "invites": [{"network_id": 1, "inviter_id": 6, "timestamp": "2026-01-01T00:00:00Z"}],
            },
            7: {"type": "respond_invite_ok", "network_id": 1, "accepted": payload[-1] == 1},
        }
        return [ok(Code.NETWORK_OK, replies[payload[0]])]

    def _dial(self, payload: bytes) -> Iterable[bytes]:
        port = ipc.decode_dial(payload).port
        if port == 9:
            return [ipc.encode_error("connection refused")]
        conn, self._next_conn = self._next_conn, self._next_conn + 1
        self._ports[conn] = port
        return [ipc.encode_conn(Code.DIAL_OK, conn)]

    def _send(self, payload: bytes) -> Iterator[bytes]:
        conn, data = ipc.decode_conn(payload)
        port = self._ports.get(conn)
        if port == 7 and data.startswith(b"TRCE"):
            yield ipc.encode_conn(Code.RECV, conn, data[:12] + data[4:12])
        elif port == 7:
            yield ipc.encode_conn(Code.RECV, conn, data)
        elif port == 8:
            yield ipc.encode_conn(Code.RECV, conn, b"hi")
            yield ipc.encode_conn(Code.CLOSE_OK, conn)
        elif port == 11:
            yield ipc.encode_conn(Code.CLOSE_OK, conn)

    def _bind(self, payload: bytes) -> Iterator[bytes]:
        port = ipc.decode_bind(payload)
        if port == 7:
            yield ipc.encode_error("port 7 already bound")
            return
        yield ipc.encode_port(Code.BIND_OK, port)
        if port != 10:
            conn, self._next_conn = self._next_conn, self._next_conn + 1
            data = b"\xff\x00" if port == 12 else b"hello"
            yield ipc.encode_accept(port, conn, PEER, 49152)
            yield ipc.encode_conn(Code.RECV, conn, data)
            yield ipc.encode_conn(Code.CLOSE_OK, conn)

    def _send_to(self, payload: bytes) -> Iterator[bytes]:
        target = ipc.decode_send_to(payload)
        if len(target.data) > ipc.DATAGRAM_MAX:
            yield ipc.encode_error(f"sendto: marshal: payload too large: {len(target.data)} bytes (max 65535)")
        else:
            yield ipc.encode_frame(Code.SEND_TO_OK)


def _unread(sock: socket.socket) -> int:
    """Return how many bytes of what `sock` sent its peer has not read; memory of the kernel, so more than the bytes."""
    with suppress(OSError):
        (size,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
        return int(size)
    return 0


def patient_poll(daemon: FakeDaemon) -> SimpleNamespace:
    """Make what stands in for the module `select` in the command line's client: it finds what comes late, too."""
    clients = 0

    class Poll:
        """Of one client: a wait in vain is one only once the daemon has settled."""

        def __init__(self) -> None:
            nonlocal clients
            clients += 1
            self._poll = select.poll()

        def register(self, sock: socket.socket, events: int) -> None:
            self._sock = sock
            self._poll.register(sock, events)

        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            events = self._poll.poll(timeout)
            if not events:
                daemon.settle(self._sock, clients)
                events = self._poll.poll(0)
            return events

    return SimpleNamespace(poll=Poll, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT)


@contextmanager
def fake_daemon(path: Path) -> Iterator[FakeDaemon]:
    """Run a scripted daemon."""
    daemon = FakeDaemon(path)
    try:
        yield daemon
    finally:
        daemon.close()
