"""Ports, ephemeral ports, connection ids, counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pilot_trio.address import EPHEMERAL_FIRST, Port
from pilot_trio.errors import PortInUse, PortsExhausted
from pilot_trio.proto.ports import CONN_ID_MAX, EPHEMERAL_COUNT, ConnectionCounts, ConnectionIds, PortTable


@pytest.mark.parametrize("port", [0, 7, 1023, 1024, EPHEMERAL_FIRST - 1, EPHEMERAL_FIRST, 65_535])
def test_any_port_can_be_bound_once_and_again_after_unbinding(port: int) -> None:
    table = PortTable(0)
    table.bind(Port(port), "a")
    assert table.owner(Port(port)) == "a"
    with pytest.raises(PortInUse, match=f"^port {port} already bound$"):
        table.bind(Port(port), "a")
    with pytest.raises(PortInUse):
        table.bind(Port(port), "b")
    assert table.bound == 1
    table.unbind(Port(port))
    table.unbind(Port(port))
    assert table.owner(Port(port)) is None
    assert table.bound == 0
    table.bind(Port(port), "b")


@given(st.integers(0, 1 << 70))
def test_ephemeral_ports_begin_at_the_random_start_and_go_round(start: int) -> None:
    table = PortTable(start)
    first = table.allocate()
    assert first == EPHEMERAL_FIRST + start % EPHEMERAL_COUNT
    second = table.allocate()
    assert second == EPHEMERAL_FIRST + (start + 1) % EPHEMERAL_COUNT


def test_a_freed_port_is_not_handed_out_again_at_once() -> None:
    table = PortTable(5)
    port = table.allocate()
    table.release(port)
    assert table.allocate() == port + 1


near_the_end = st.integers(EPHEMERAL_COUNT - 20, EPHEMERAL_COUNT + 20)


@given(
    near_the_end,
    st.sets(st.integers(0, 19) | st.integers(EPHEMERAL_COUNT - 20, EPHEMERAL_COUNT - 1)),
    st.lists(st.integers(0, 25), max_size=4),
)
def test_ports_that_nobody_keeps_are_those_of_as_many_allocations(
    start: int, bound: set[int], counts: list[int]
) -> None:
    together, single = PortTable(start), PortTable(start)
    for index in bound:
        for table in (together, single):
            table.bind(Port(EPHEMERAL_FIRST + index), "somebody")
    for count in counts:
        expected = []
        for _ in range(count):
            expected.append(port := single.allocate())
            single.release(port)
        assert list(together.next_free(count)) == expected
        assert together.allocated == 0
    assert together.allocate() == single.allocate()


def test_without_a_free_port_there_is_none_to_use_for_a_moment() -> None:
    table = PortTable(5)
    for _ in range(EPHEMERAL_COUNT):
        table.allocate()
    assert list(table.next_free(0)) == []
    with pytest.raises(PortsExhausted):
        table.next_free(1)
    table.release(Port(50_000))
    assert list(table.next_free(3)) == [50_000] * 3


def test_all_16384_ports_can_be_used_and_not_one_more() -> None:
    table = PortTable(12_345)
    ports = {table.allocate() for _ in range(EPHEMERAL_COUNT - 1)}
    ports.add(table.allocate())
    assert len(ports) == EPHEMERAL_COUNT == table.allocated
    with pytest.raises(PortsExhausted, match=r"^ephemeral ports exhausted$"):
        table.allocate()
    table.release(Port(50_000))
    assert table.allocate() == 50_000
    with pytest.raises(PortsExhausted):
        table.allocate()


def test_the_allocator_skips_bound_ports() -> None:
    table = PortTable(0)
    table.bind(Port(EPHEMERAL_FIRST), "a")
    assert table.allocate() == EPHEMERAL_FIRST + 1
    table.unbind(Port(EPHEMERAL_FIRST))
    for _ in range(EPHEMERAL_COUNT - 2):
        table.allocate()
    assert table.allocate() == EPHEMERAL_FIRST


def test_a_port_in_ephemeral_use_can_be_bound_and_outlives_the_binding() -> None:
    table = PortTable(0)
    port = table.allocate()
    table.bind(port, "a")
    table.release(port)
    assert table.owner(port) == "a"
    table.unbind(port)
    assert table.allocated == 0


@pytest.mark.parametrize("port", [0, 7, EPHEMERAL_FIRST, 65_535])
def test_releasing_what_was_not_allocated_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="not allocated"):
        PortTable(0).release(Port(port))


def test_ids_count_from_one_and_skip_zero_and_those_in_use_at_the_end() -> None:
    ids = ConnectionIds()
    assert [ids.allocate(()) for _ in range(3)] == [1, 2, 3]
    ids = ConnectionIds(CONN_ID_MAX)
    assert ids.allocate(()) == CONN_ID_MAX
    assert ids.allocate({1, 2, 4}) == 3
    assert ids.allocate({1, 2, 4}) == 5


def test_counts_are_limited_per_port_and_in_all() -> None:
    counts = ConnectionCounts(per_port=2, total=4)
    counts.add(Port(1))
    assert counts.room(Port(1))
    counts.add(Port(1))
    assert not counts.room(Port(1))
    assert counts.room(Port(2), others=1)
    counts.add(Port(2))
    assert counts.room(Port(2))
    assert not counts.room(Port(2), others=1)
    counts.add(Port(3))
    assert not counts.room(Port(2))
    counts.remove(Port(1))
    assert counts.room(Port(1))
    for port in (1, 2, 3):
        counts.remove(Port(port))
    assert counts.total == 0


class PortTableMachine(RuleBasedStateMachine):
    """No port has two holders, and none is lost."""

    allocated = Bundle("allocated")
    bound = Bundle("bound")

    def __init__(self) -> None:
        super().__init__()
        self.table = PortTable(EPHEMERAL_COUNT - 3)
        self.in_use: set[Port] = set()
        self.listening: set[Port] = set()

    @rule(target=allocated)
    def allocate(self) -> Port:
        port = self.table.allocate()
        assert port not in self.in_use | self.listening
        self.in_use.add(port)
        return port

    @rule(port=consumes(allocated))
    def release(self, port: Port) -> None:
        self.table.release(port)
        self.in_use.remove(port)

    @rule(target=bound, port=st.sampled_from([0, 65_533, 65_534, 65_535, EPHEMERAL_FIRST, EPHEMERAL_FIRST + 1]))
    def bind(self, port: Port) -> Port:
        if port in self.listening:
            with pytest.raises(PortInUse):
                self.table.bind(port, "a")
        else:
            self.table.bind(port, "a")
            self.listening.add(port)
        return port

    @rule(port=bound)
    def unbind(self, port: Port) -> None:
        self.table.unbind(port)
        self.listening.discard(port)

    @invariant()
    def counts_agree(self) -> None:
        assert self.table.allocated == len(self.in_use)
        assert self.table.bound == len(self.listening)


TestPortTableMachine = PortTableMachine.TestCase
