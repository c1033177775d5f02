"""Which records are kept out, within bounds."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.quarantine import EXAMPLES, Quarantine, shown
from clustermesh.wire.keys import Kind

N, S = Kind.NODES, Kind.SERVICES


def test_quarantine_counts_what_is_kept_out_now() -> None:
    quarantine = Quarantine("red")
    for _ in range(2):
        assert quarantine.put(N, "a", "too big", None)
    assert quarantine.put(N, "a", "too small", b"value")
    quarantine.put(N, "b", "too small", None)
    quarantine.put(S, "a", "odd", None)
    assert quarantine.view().by_reason == {"odd": 1, "too small": 2}
    assert set(quarantine.waiting(N)) == {"a"}
    quarantine.release(S, "a")
    quarantine.release(S, "never")
    view = quarantine.view()
    assert (view.total, view.by_reason) == (2, {"too small": 2})
    assert view.examples == ("nodes/a: too small", "nodes/b: too small")


def test_every_reason_has_an_example_before_any_has_two() -> None:
    quarantine = Quarantine("red")
    for number in range(30):
        quarantine.put(N, str(number), "common", None)
    quarantine.put(N, "x", "rare", None)
    examples = quarantine.view().examples
    assert len(examples) == EXAMPLES
    assert examples[:3] == ("nodes/0: common", "nodes/x: rare", "nodes/1: common")


def test_what_there_is_no_room_for_is_counted_but_not_remembered() -> None:
    quarantine = Quarantine("red", most=2)
    assert [quarantine.put(N, str(number), "odd", None) for number in range(4)] == [True, True, False, False]
    assert quarantine.forgotten == {N}
    assert quarantine.view().total == 4
    quarantine.recount(N)
    assert quarantine.view().total == 2 and not quarantine.forgotten


def test_values_and_keys_take_room() -> None:
    quarantine = Quarantine("red", most_bytes=100)
    assert not quarantine.put(N, "k" * 101, "odd", None)
    assert quarantine.put(N, "a", "odd", b"x" * 90)
    assert not quarantine.put(N, "b", "odd", b"x" * 20)
    quarantine.release(N, "a")
    assert quarantine.put(N, "b", "odd", b"x" * 20)


def test_the_log_names_some_of_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine("red")
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            quarantine.put(N, str(number), "odd", None)
        quarantine.put(N, "x", "rare", None)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "peer red: kept out nodes/0: odd"
    assert len(lines) == 11 and lines[-1] == "peer red: kept out nodes/x: rare"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"red-1", "nodes/red-1"),
        (b"a\xffb", "nodes/a\\xffb"),
        (b"a\nb\x1b[31m", "nodes/a\\nb\\x1b[31m"),
        ("ü".encode(), "nodes/ü"),
        (b"k" * 500, "nodes/" + "k" * 160 + "…"),
    ],
)
def test_a_key_is_shown_escaped(key: bytes, text: str) -> None:
    assert shown(N, key.decode(errors="surrogateescape")) == text


@given(st.binary(max_size=300))
def test_any_key_can_be_printed(key: bytes) -> None:
    text = shown(N, key.decode(errors="surrogateescape"))
    assert text.isprintable()
    text.encode()


@given(
    st.lists(
        st.tuples(st.sampled_from([N, S]), st.integers(0, 6), st.sampled_from(["odd", "rare"]), st.integers(0, 40))
    )
)
def test_it_never_holds_more_than_it_may(steps: list[tuple[Kind, int, str, int]]) -> None:
    quarantine = Quarantine("red", most=4, most_bytes=60)
    for kind, number, reason, size in steps:
        remembered = quarantine.put(kind, str(number), reason, b"x" * size)
        assert remembered == (quarantine.get(kind, str(number)) is not None)
        held = [quarantine.get(of, name) for of in Kind for name in quarantine.tails(of)]
        assert len(held) <= 4
        assert sum(len(refused.value or b"") + 1 for refused in held if refused) <= 60
