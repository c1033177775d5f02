"""The parts of a feed that need no server."""

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.feed import Event, Feed, whole_revisions
from clustermesh.kvstore.rpc import etcd_pb2 as pb


def change(key: bytes, revision: int, value: bytes | None = b"") -> pb.Event:
    kv = pb.KeyValue(key=key, mod_revision=revision, value=value or b"")
    return pb.Event(type=pb.Event.DELETE if value is None else pb.Event.PUT, kv=kv)


def feed() -> Feed:
    return Feed(Connection(["https://127.0.0.1"], None), "a/")


@given(revisions=st.lists(st.integers(1, 5), min_size=1).map(sorted))
def test_a_fragment_is_cut_before_its_last_revision(revisions: list[int]) -> None:
    whole, rest = whole_revisions([change(b"k", revision) for revision in revisions])
    assert [event.kv.mod_revision for event in whole + rest] == revisions
    assert {event.kv.mod_revision for event in rest} == {revisions[-1]}
    assert all(event.kv.mod_revision < revisions[-1] for event in whole)


def test_a_repeated_event_is_not_told_twice() -> None:
    one = feed()
    history = [change(b"a/1", 5, b"x"), change(b"a/2", 6, b"y"), change(b"a/1", 7, None)]
    assert one._changed(history) == [Event(b"a/1", b"x", 5), Event(b"a/2", b"y", 6), Event(b"a/1", None, 7)]
    assert one._changed(history[1:]) == []


def test_a_list_tells_only_what_differs_and_leaves_the_vanished_stale() -> None:
    one = feed()
    one._changed([change(b"a/1", 5), change(b"a/2", 6), change(b"a/3", 7)])
    stale = set(one._known)
    listed = [pb.KeyValue(key=b"a/1", mod_revision=5), pb.KeyValue(key=b"a/2", mod_revision=9, value=b"new")]
    assert one._listed(listed, stale) == [Event(b"a/2", b"new", 9)]
    assert stale == {b"3"}  # below the prefix
