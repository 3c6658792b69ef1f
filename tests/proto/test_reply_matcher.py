"""Answers reach their requests, whatever is cancelled, late, out of order or an error (`spec/ipc.md` §2, §9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_trio.errors import LocalProtocolError
from pilot_trio.proto.reply_matcher import ORDERED_IN_FLIGHT_MAX, REPLIES, ReplyMatcher, Request
from pilot_trio.wire.ipc import Code

ORDERED = [Code.SEND_TO_CONFIRM, Code.HEALTH]
EXCLUSIVE = sorted(set(REPLIES) - set(ORDERED))
PUSHES = [Code.RECV, Code.ACCEPT, Code.RECV_FROM]
ERROR_PREFIX = {Code.SEND_TO_CONFIRM: "sendto: ", Code.HEALTH: "health marshal: "}


def error(text: str) -> tuple[Code, bytes]:
    return Code.ERROR, b"\x00\x01" + text.encode()


class AnyConversation(RuleBasedStateMachine):
    """A client that asks and gives up at random, and a daemon that answers in any order that the protocol allows.

    Every request carries a number, every answer the number of its request; so a misattributed answer shows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matcher = ReplyMatcher()
        self.number: dict[Request, int] = {}
        self.lanes: dict[Code, list[Request]] = {command: [] for command in ORDERED}
        self.exclusive: list[Request] = []
        self.waiting: set[Request] = set()

    @rule(command=st.sampled_from(ORDERED + EXCLUSIVE))
    def ask(self, command: Code) -> None:
        queue = self.lanes.get(command, self.exclusive)
        if not self.matcher.can_begin(command):
            assert queue is self.exclusive
            assert self.exclusive
            with pytest.raises(LocalProtocolError):
                self.matcher.begin(command)
            return
        request = self.matcher.begin(command)
        queue.append(request)
        self.number[request] = len(self.number)
        self.waiting.add(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting, key=lambda request: self.number[request])))
        self.waiting.discard(request)
        self.matcher.abandon(request)

    @precondition(lambda self: self.exclusive or any(self.lanes.values()))
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        queues = [queue for queue in [self.exclusive, *self.lanes.values()] if queue]
        request = data.draw(st.sampled_from(queues)).pop(0)
        tag = str(self.number[request])
        if fails:
            code, payload = error(ERROR_PREFIX.get(request.command, "") + tag)
        else:
            code, payload = request.reply, tag.encode()
        answer = self.matcher.receive(code, payload)
        if request not in self.waiting:
            assert answer is None
            return
        self.waiting.discard(request)
        assert answer is not None
        assert answer.request is request
        assert (answer.error is not None) == fails
        assert (answer.error or answer.payload.decode()).endswith(tag)

    @rule(code=st.sampled_from([*PUSHES, 0x00, 0x0D, 0x3B, 0x7F, 0xFF]), payload=st.binary(max_size=20))
    def push_or_noise(self, code: int, payload: bytes) -> None:
        before = self.matcher.unmatched
        assert self.matcher.receive(code, payload) is None
        assert self.matcher.unmatched == before + 1

    @invariant()
    def nothing_is_forgotten(self) -> None:
        expected = {*self.exclusive, *(request for lane in self.lanes.values() for request in lane)}
        assert set(self.matcher.in_flight) == expected
        assert self.matcher.owed == len(expected - self.waiting)


TestAnyConversation = AnyConversation.TestCase


def test_every_replied_command_has_a_reply_of_its_own() -> None:
    assert len(set(REPLIES.values())) == len(REPLIES)
    assert REPLIES[Code.SEND_TO_CONFIRM] is Code.SEND_TO_OK
    for command in (Code.SEND, Code.SEND_TO, Code.CANCEL):
        assert command not in REPLIES
        with pytest.raises(LocalProtocolError, match="never answered"):
            ReplyMatcher().begin(command)


def test_a_cancelled_request_swallows_its_own_late_error() -> None:
    matcher = ReplyMatcher()
    first = matcher.begin(Code.SET_HOSTNAME)
    matcher.abandon(first)
    assert not matcher.can_begin(Code.INFO)
    assert matcher.receive(*error("set_hostname: registry: too late")) is None
    second = matcher.begin(Code.INFO)
    answer = matcher.receive(Code.INFO_OK, b"{}")
    assert answer is not None
    assert answer.request is second


def test_a_late_error_of_a_confirmed_datagram_does_not_hit_an_ordinary_request() -> None:
    matcher = ReplyMatcher()
    datagram = matcher.begin(Code.SEND_TO_CONFIRM)
    matcher.abandon(datagram)
    info = matcher.begin(Code.INFO)
    assert matcher.receive(*error("sendto: resolve node 9: registry: no")) is None
    answer = matcher.receive(*error("info: no"))
    assert answer is not None
    assert answer.request is info


def test_an_ordinary_error_does_not_hit_a_confirmed_datagram() -> None:
    matcher = ReplyMatcher()
    datagram = matcher.begin(Code.SEND_TO_CONFIRM)
    assert matcher.receive(*error("unknown command: 0x0D")) is None
    answer = matcher.receive(Code.SEND_TO_OK, b"")
    assert answer is not None
    assert answer.request is datagram


def test_a_daemon_without_confirmed_datagrams_is_understood() -> None:
    matcher = ReplyMatcher()
    datagram, info = matcher.begin(Code.SEND_TO_CONFIRM), matcher.begin(Code.INFO)
    answer = matcher.receive(*error("unknown command: 0x39"))
    assert answer is not None
    assert answer.request is datagram
    assert matcher.in_flight == [info]


def test_confirmed_datagrams_are_answered_in_order() -> None:
    matcher = ReplyMatcher()
    first, second, third = (matcher.begin(Code.SEND_TO_CONFIRM) for _ in range(3))
    matcher.abandon(second)
    answers = [
        matcher.receive(Code.SEND_TO_OK, b""),
        matcher.receive(*error("sendto: x")),
        matcher.receive(Code.SEND_TO_OK, b""),
    ]
    assert [answer and answer.request for answer in answers] == [first, None, third]


@pytest.mark.parametrize("command", ORDERED)
def test_a_lane_is_bounded_and_abandoned_requests_count(command: Code) -> None:
    matcher = ReplyMatcher()
    for _ in range(ORDERED_IN_FLIGHT_MAX - 1):
        matcher.abandon(matcher.begin(command))
    assert matcher.can_begin(command)
    matcher.begin(command)
    assert not matcher.can_begin(command)
    with pytest.raises(LocalProtocolError, match="has to wait"):
        matcher.begin(command)
    matcher.receive(REPLIES[command], b"")
    assert matcher.can_begin(command)


@given(st.integers(0, 255), st.binary(max_size=50))
def test_frames_without_a_request_are_nobodys(code: int, payload: bytes) -> None:
    matcher = ReplyMatcher()
    assert matcher.receive(code, payload) is None
    assert matcher.unmatched == 1


def test_an_answer_is_given_once() -> None:
    matcher = ReplyMatcher()
    matcher.begin(Code.INFO)
    assert matcher.receive(Code.INFO_OK, b"{}") is not None
    assert matcher.receive(Code.INFO_OK, b"{}") is None
