"""Deletions wait for their writer."""

from clustermesh.kvstore.feed import Event
from clustermesh.kvstore.gate import Gate

PUT, GONE = Event(b"a", b"1", 1), Event(b"a", None, 2)


def test_deletions_count_while_the_canary_stands() -> None:
    gate = Gate()
    assert list(gate.admit([PUT, GONE], vouched=True)) == [PUT, GONE]
    assert not gate.holds


def test_deletions_wait_when_it_is_gone_and_count_when_it_is_back() -> None:
    gate = Gate()
    assert list(gate.admit([GONE, Event(b"b", b"1", 2)], vouched=False)) == [Event(b"b", b"1", 2)]
    assert gate.release() == [GONE]
    assert not gate.holds


def test_a_key_that_has_come_back_was_never_deleted() -> None:
    gate = Gate()
    gate.admit([GONE], vouched=False)
    assert list(gate.admit([Event(b"a", b"2", 3)], vouched=True)) == [Event(b"a", b"2", 3)]
    assert gate.release() == []
