"""The connection table: dialling, admission, ownership, TIME_WAIT, events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import StreamLimits
from pilot_trio.daemon.connection import Connection, ConnState
from pilot_trio.daemon.local_stream import LOCAL_BUFFER_MAX
from pilot_trio.daemon.port_listener import ACCEPT_BACKLOG_MAX, PortListener
from pilot_trio.daemon.streams import FINISHED_LOCAL_ROWS_MAX, NoTunnel, StreamTable
from pilot_trio.errors import DialRefused, NoRoute, PortInUse, PortNotAllowed, PortsExhausted
from pilot_trio.proto.ports import EPHEMERAL_COUNT, PortTable
from tests.daemon.stream_fakes import OTHER, OWN, SELF, UNKNOWN, FakeNode, FakeResolver, make_state, make_table


def limits(per_port: int = 1024, total: int = 65_536) -> StreamLimits:
    return StreamLimits(max_conns_per_port=per_port, max_conns_total=total)


# Binding


async def test_a_port_has_one_listener_until_it_is_unbound() -> None:
    table = make_table()
    listener = table.bind(0, "a")
    with pytest.raises(PortInUse, match=r"^port 0 already bound$"):
        table.bind(0, "a")
    assert not table.unbind(0, "b")
    assert not table.unbind(1, "a")
    assert table.unbind(0, "a")
    assert not table.unbind(0, "a")
    listener.close()
    assert table.bind(0, "b").owner == "b"
    assert table.statistics().ports == 1


async def test_unbinding_resets_what_nobody_accepted_and_leaves_the_rest() -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    accepted_by = table.dial_local(SELF, 5000, owner="client")
    accepted = await listener.accept()
    waiting = table.dial_local(SELF, 5000, owner="client")
    listener.close()
    assert accepted_by.state is accepted.state is ConnState.ESTABLISHED
    assert waiting.state is ConnState.CLOSED
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_connection_reset_in_the_backlog_is_never_accepted() -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    table.dial_local(SELF, 5000, owner="client").reset()
    closed = table.dial_local(SELF, 5000, owner="client")
    closed.write_nowait(b"x")
    closed.close()
    connection = await listener.accept()  # closed gracefully: its data is still to be had
    assert await connection.receive_some(10) == b"x"


# Dialling


async def test_nobody_listens() -> None:
    table = make_table()
    with pytest.raises(DialRefused, match=r"^connection refused$"):
        await table.dial(SELF, 5000, owner="client")
    statistics = table.statistics()
    assert (statistics.rows, statistics.ephemeral_ports) == (0, 0)


async def test_the_own_id_is_never_resolved() -> None:
    node = FakeNode()
    node.streams.bind(5000, "server")
    await node.streams.dial(SELF, 5000, owner="client")
    assert node.resolver.asked == []


async def test_a_dial_in_a_network_uses_the_address_in_that_network_and_needs_membership() -> None:
    node = FakeNode()
    listener = node.streams.bind(5000, "server")
    address = Address(NetworkId(7), OWN)
    with pytest.raises(NoRoute, match=r"^node 1 is not a member of network 7$"):
        await node.streams.dial(address, 5000, owner="client")
    node.state.networks.append(NetworkId(7))
    dialler = await node.streams.dial(address, 5000, owner="client")
    acceptor = await listener.accept()
    assert dialler.local.address == dialler.remote.address == acceptor.remote.address == address
    assert dialler.row()["remote_addr"] == "7:0007.0000.0001"


async def test_the_port_policy_of_the_network_comes_before_everything_else() -> None:
    node = FakeNode()
    node.streams.bind(5000, "server")
    node.state.networks.append(NetworkId(7))
    node.state.allowed_ports[NetworkId(7)] = frozenset({80})
    for target in (OWN, UNKNOWN):
        with pytest.raises(PortNotAllowed, match=r"^port 5000 not allowed by network 7 policy$"):
            await node.streams.dial(Address(NetworkId(7), target), 5000, owner="client")
    assert node.resolver.asked == []
    with pytest.raises(DialRefused):
        await node.streams.dial(Address(NetworkId(7), OWN), 80, owner="client")


async def test_nothing_can_be_dialled_before_registration() -> None:
    table = make_table(node_id=0)
    assert not table.is_local(Address(NetworkId(0), NodeId(0)))
    for target in (0, 5):
        with pytest.raises(NoRoute, match="not registered yet"):
            await table.dial(Address(NetworkId(0), NodeId(target)), 7, owner="client")


async def test_other_nodes_are_resolved_and_then_out_of_reach() -> None:
    node = FakeNode()
    with pytest.raises(NoRoute, match=r"^no tunnel to node 3$"):
        await node.streams.dial(Address(NetworkId(0), OTHER), 7, owner="client")
    with pytest.raises(NoRoute, match=r"^resolve node 7777: registry: request failed$"):
        await node.streams.dial(Address(NetworkId(0), UNKNOWN), 7, owner="client")
    assert node.streams.statistics().ephemeral_ports == 0


async def test_a_dial_to_another_node_can_be_cancelled(autojump_clock: MockClock) -> None:
    node = FakeNode()
    node.resolver.hold = True
    with trio.move_on_after(1) as scope:
        await node.streams.dial(Address(NetworkId(0), OTHER), 7, owner="client")
    assert scope.cancelled_caught
    assert node.streams.statistics().rows == 0


# Limits


@pytest.mark.parametrize("waiting", [ACCEPT_BACKLOG_MAX - 1, ACCEPT_BACKLOG_MAX])
async def test_the_backlog_of_a_port_is_64(waiting: int) -> None:
    node = FakeNode()
    listener = node.streams.bind(5000, "server")
    for _ in range(waiting):
        node.streams.dial_local(SELF, 5000, owner="client")
    if waiting < 64:
        node.streams.dial_local(SELF, 5000, owner="client")
    with pytest.raises(DialRefused):
        node.streams.dial_local(SELF, 5000, owner="client")
    assert node.streams.statistics().accept_queue_drops == 1
    assert node.topics().count("conn.accept_queue_full") == 1
    await listener.accept()
    node.streams.dial_local(SELF, 5000, owner="client")


async def test_active_connections_are_limited_per_port() -> None:
    table = make_table(limits=limits(per_port=3))
    listener = table.bind(5000, "server")
    connections = [table.dial_local(SELF, 5000, owner="client") for _ in range(3)]
    with pytest.raises(DialRefused):
        table.dial_local(SELF, 5000, owner="client")
    table.bind(5001, "server")
    table.dial_local(SELF, 5001, owner="client")
    connections[0].close()
    table.dial_local(SELF, 5000, owner="client")
    assert listener.port == 5000


@pytest.mark.parametrize("total", [4, 5])
async def test_active_connections_are_limited_in_all_and_a_pair_is_two(total: int) -> None:
    table = make_table(limits=limits(total=total))
    table.bind(5000, "server")
    first = table.dial_local(SELF, 5000, owner="client")
    table.dial_local(SELF, 5000, owner="client")
    with pytest.raises(DialRefused):
        table.dial_local(SELF, 5000, owner="client")
    first.close()  # TIME_WAIT does not count
    table.dial_local(SELF, 5000, owner="client")


async def test_ports_run_out_at_16384_live_dials() -> None:
    table = make_table(limits=StreamLimits(max_conns_per_port=1 << 20))
    listener = table.bind(5000, "server")
    connections = []
    for _ in range(EPHEMERAL_COUNT):
        connections.append(table.dial_local(SELF, 5000, owner="client"))
        await listener.accept()
    with pytest.raises(PortsExhausted, match=r"^ephemeral ports exhausted$"):
        table.dial_local(SELF, 5000, owner="client")
    assert table.statistics().connections == 2 * EPHEMERAL_COUNT
    connections[77].reset()
    assert table.dial_local(SELF, 5000, owner="client").local.port == connections[77].local.port


async def test_finished_local_rows_give_way_to_newer_ones(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    for number in range(1, EPHEMERAL_COUNT + 10):  # more within TIME_WAIT than there are ports
        table.dial_local(SELF, 5000, owner="client")
        (await listener.accept()).close()
        if number in (511, 512, 513):
            assert table.statistics().rows == min(2 * number, FINISHED_LOCAL_ROWS_MAX)
    statistics = table.statistics()
    assert (statistics.rows, statistics.ephemeral_ports) == (1024, 512)
    await trio.sleep(10)
    assert table.statistics().rows == 0


async def test_a_finished_row_with_unread_bytes_does_not_give_way() -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    first = table.dial_local(SELF, 5000, owner="client")
    acceptor = await listener.accept()
    acceptor.write_nowait(b"unread")
    acceptor.close()
    for _ in range(3 * FINISHED_LOCAL_ROWS_MAX):
        table.dial_local(SELF, 5000, owner="client").close()
        await listener.accept()
    assert table.get(first.conn_id) is first
    assert first.receive_nowait(100) == b"unread"
    for _ in range(FINISHED_LOCAL_ROWS_MAX):
        table.dial_local(SELF, 5000, owner="client").close()
        await listener.accept()
    assert table.get(first.conn_id) is None
    assert table.statistics().rows == FINISHED_LOCAL_ROWS_MAX


# Ends


async def test_time_wait_rows_are_listed_not_counted_and_go_after_ten_seconds(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    dialler = table.dial_local(SELF, 5000, owner="client")
    await listener.accept()
    dialler.close()
    assert [row["state"] for row in table.rows()] == ["TIME_WAIT", "TIME_WAIT"]
    assert table.statistics().connections == 0
    assert table.statistics().ephemeral_ports == 1
    await trio.sleep(9.999)
    assert len(table.rows()) == 2
    await trio.sleep(0.001)
    assert table.rows() == []
    assert table.statistics().ephemeral_ports == 0
    assert table.get(dialler.conn_id) is None


async def test_a_row_stays_as_long_as_somebody_may_read_from_it(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    dialler = table.dial_local(SELF, 5000, owner="client")
    acceptor = await listener.accept()
    dialler.write_nowait(b"unread")
    dialler.close()
    await trio.sleep(60)
    assert [row["id"] for row in table.rows()] == [acceptor.conn_id]
    assert await acceptor.receive_some(100) == b"unread"
    await trio.sleep(10)
    assert table.rows() == []


async def test_a_reset_leaves_no_rows(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    table.dial_local(SELF, 5000, owner="client").reset()
    closed = table.dial_local(SELF, 5000, owner="client")
    closed.close()
    closed.reset()
    assert table.rows() == []
    assert table.statistics().ephemeral_ports == 0
    await trio.sleep(20)
    assert table.rows() == []
    assert listener.port == 5000


async def test_an_owner_lets_go_of_everything_at_once(nursery: trio.Nursery) -> None:
    table = make_table()
    theirs = table.bind(5000, "other")
    mine = table.bind(6000, "mine")
    dialled = table.dial_local(SELF, 5000, owner="mine")
    in_backlog = table.dial_local(SELF, 6000, owner="other")
    half_read = table.dial_local(SELF, 5000, owner="mine")
    far = await theirs.accept()
    await theirs.accept()
    dialled.write_nowait(b"goodbye")
    assert table.live("mine") == 3
    table.close_owned("mine")
    table.close_owned("mine")
    assert table.live("mine") == 0
    assert dialled.state is half_read.state is ConnState.TIME_WAIT
    assert await far.receive_some(100) == b"goodbye"
    assert await far.receive_some(100) == b""
    assert in_backlog.state is ConnState.TIME_WAIT
    with pytest.raises(trio.ClosedResourceError):
        await mine.accept()
    table.bind(6000, "other")
    table.dial_local(SELF, 5000, owner="other")


async def test_an_owner_that_leaves_gives_up_unread_bytes_of_finished_streams(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    dialler = table.dial_local(SELF, 5000, owner="client")
    await listener.accept()
    dialler.write_nowait(bytes(LOCAL_BUFFER_MAX))
    dialler.close()
    table.close_owned("server")
    await trio.sleep(10)
    assert table.rows() == []


async def test_acceptors_get_one_connection_each(nursery: trio.Nursery) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    got: list[Connection] = []

    async def accept() -> None:
        got.append(await listener.accept())

    for _ in range(3):
        nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    table.dial_local(SELF, 5000, owner="client")
    await wait_all_tasks_blocked()
    assert len(got) == 1
    table.dial_local(SELF, 5000, owner="client")
    table.dial_local(SELF, 5000, owner="client")
    await wait_all_tasks_blocked()
    assert len({connection.conn_id for connection in got}) == 3


async def test_a_cancelled_acceptor_loses_no_connection(nursery: trio.Nursery) -> None:
    table = make_table()
    listener = table.bind(5000, "server")
    scope = trio.CancelScope()
    got: list[Connection] = []

    async def accept(within: trio.CancelScope) -> None:
        with within:
            got.append(await listener.accept())

    nursery.start_soon(accept, scope)
    nursery.start_soon(accept, trio.CancelScope())
    await wait_all_tasks_blocked()
    table.dial_local(SELF, 5000, owner="client")
    scope.cancel()
    table.dial_local(SELF, 5000, owner="client")
    await wait_all_tasks_blocked()
    if len(got) < 2:
        got.append(await listener.accept())
    assert len({connection.conn_id for connection in got}) == 2


# Events


async def test_events_tell_the_life_of_a_connection() -> None:
    node = FakeNode(random_start=0)
    listener = node.streams.bind(5000, "server")
    node.streams.dial_local(SELF, 5000, owner="client").close()
    incoming = {"conn_id": 2, "dst_port": 5000, "src_addr": "0:0000.0000.0001", "src_port": 49152}
    fin = {"conn_id": 1, "local_port": 49152, "remote_addr": "0:0000.0000.0001", "remote_port": 5000}
    assert node.published == [
        ("conn.syn_received", incoming),
        ("conn.established", incoming),
        ("conn.fin", fin),
        ("conn.fin", {"conn_id": 2, "local_port": 5000, "remote_addr": "0:0000.0000.0001", "remote_port": 49152}),
    ]
    node.published.clear()
    node.streams.dial_local(SELF, 5000, owner="client").reset()
    assert node.topics() == ["conn.syn_received", "conn.established", "conn.rst", "conn.rst"]
    assert listener.port == 5000


async def test_an_answered_stream_to_data_exchange_is_a_delivered_file() -> None:
    node = FakeNode()
    listener = node.streams.bind(1001, "dataexchange")
    for answered in (False, True):
        dialler = node.streams.dial_local(SELF, 1001, owner="client")
        acceptor = await listener.accept()
        acceptor.write_nowait(b"ACK" if answered else b"")
        dialler.close()
        assert ("file.delivered" in node.topics()) == answered


# The table under arbitrary use


class TableMachine(RuleBasedStateMachine):
    """Ports, ids, rows and bytes: nothing leaks, nothing is lost, nothing is read twice."""

    connections = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = StreamTable(
            make_state(),
            PortTable(EPHEMERAL_COUNT - 2),
            NoTunnel(FakeResolver()),
            limits=limits(per_port=4, total=12),
        )
        self.listeners: dict[int, PortListener] = {}
        self.peers: dict[int, Connection] = {}
        self.in_transit: dict[int, bytearray] = {}  # by id of the end that will read it
        self.dead_ids: set[int] = set()
        self.payload = itertools.cycle(range(256))

    @contextmanager
    def inside_trio(self) -> Iterator[None]:
        """Give the table a clock: it asks for the time, and for nothing else of Trio."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio, "current_time", lambda: self.now)
            yield

    @rule(port=st.sampled_from([0, 7, 65_535]), owner=st.sampled_from("ab"))
    def bind(self, port: int, owner: str) -> None:
        if port in self.listeners:
            with pytest.raises(PortInUse):
                self.table.bind(port, owner)
        else:
            self.listeners[port] = self.table.bind(port, owner)

    @precondition(lambda self: self.listeners)
    @rule(data=st.data())
    def unbind(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.listeners)))
        with self.inside_trio():
            assert self.table.unbind(port, self.listeners.pop(port).owner)

    @rule(target=connections, port=st.sampled_from([0, 7, 65_535]), owner=st.sampled_from("abc"))
    def dial(self, port: int, owner: str) -> list[Connection]:
        with self.inside_trio():
            try:
                dialler = self.table.dial_local(SELF, port, owner=owner)
            except DialRefused:
                return []
        assert dialler.local.port not in self.listeners
        acceptor = dialler._peer  # type: ignore[attr-defined]
        assert not {dialler.conn_id, acceptor.conn_id} & self.dead_ids
        for near, far in ((dialler, acceptor), (acceptor, dialler)):
            self.dead_ids.add(near.conn_id)
            self.peers[near.conn_id] = far
            self.in_transit[near.conn_id] = bytearray()
        return [dialler, acceptor]

    @rule(pair=connections, end=st.integers(0, 1), size=st.sampled_from([0, 1, 1000, 100_000, 300_000]))
    def write(self, pair: list[Connection], end: int, size: int) -> None:
        if pair:
            connection = pair[end]
            data = bytes(next(self.payload) for _ in range(min(size, 8))) * (size // 8 + 1)
            try:
                taken = connection.write_nowait(data[:size])
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                assert connection.state is not ConnState.ESTABLISHED
            else:
                self.in_transit[self.peers[connection.conn_id].conn_id] += data[:taken]

    @rule(pair=connections, end=st.integers(0, 1), size=st.sampled_from([1, 999, 1 << 20]))
    def read(self, pair: list[Connection], end: int, size: int) -> None:
        if pair:
            expected = self.in_transit[pair[end].conn_id]
            try:
                got = pair[end].receive_nowait(size)
            except trio.WouldBlock:
                assert not expected
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                assert pair[end].state is not ConnState.ESTABLISHED
            else:
                assert got == expected[:size]
                del expected[: len(got)]

    @rule(pair=connections, end=st.integers(0, 1))
    def close(self, pair: list[Connection], end: int) -> None:
        if pair:
            with self.inside_trio():
                pair[end].close()
            self.in_transit[pair[end].conn_id].clear()

    @rule(pair=consumes(connections), end=st.integers(0, 1))
    def reset(self, pair: list[Connection], end: int) -> None:
        if pair:
            pair[end].reset()

    @rule(owner=st.sampled_from("abc"))
    def leave(self, owner: str) -> None:
        with self.inside_trio():
            self.table.close_owned(owner)
        self.listeners = {port: listener for port, listener in self.listeners.items() if listener.owner != owner}
        for peer in self.peers.values():
            if peer.owner == owner:
                self.in_transit[peer.conn_id].clear()

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_books_agree(self) -> None:
        with self.inside_trio():
            rows = self.table.rows()
            statistics = self.table.statistics()
        active = [row for row in rows if row["state"] not in ("TIME_WAIT", "CLOSED")]
        assert statistics.connections == len(active) <= 12
        assert statistics.rows == len(rows)
        assert statistics.ports == len(self.listeners)
        connections = [self.table.get(row["id"]) for row in rows]
        assert statistics.ephemeral_ports == sum(
            connection is not None and connection.dialled for connection in connections
        )
        assert sum(self.table.live(owner) for owner in "abc") == len(active)

    def teardown(self) -> None:
        with self.inside_trio():
            for owner in "abc":
                self.table.close_owned(owner)
            self.now += 1000
            statistics = self.table.statistics()
        assert (statistics.connections, statistics.rows, statistics.ports, statistics.ephemeral_ports) == (0, 0, 0, 0)


TestTableMachine = TableMachine.TestCase
