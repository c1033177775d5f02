"""Of several claims to an entry the best source's counts, in whatever order they come."""

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.tables.ranked import Ranked
from nodeagent.tables.source import Facet, Source

OWN = Source(False, 1, Facet.ADDRESSES)
GREEN = Source(True, 2, Facet.ADDRESSES)
BLUE = Source(True, 3, Facet.ADDRESSES)


def test_a_claim_counts_until_it_is_withdrawn() -> None:
    table = Ranked[str, int]()
    assert table.apply(GREEN, [("a", 1)]) == [("a", 1)]
    assert table.apply(GREEN, [("a", 1)]) == []
    assert table.apply(GREEN, [("a", None)]) == [("a", None)]
    assert table.apply(GREEN, [("a", None)]) == []


def test_the_better_source_wins_and_the_other_comes_forward_when_it_leaves() -> None:
    table = Ranked[str, int]()
    table.apply(BLUE, [("a", 3)])
    assert table.apply(OWN, [("a", 1)]) == [("a", 1)]
    assert table.apply(BLUE, [("a", 33)]) == []
    assert table.drop(OWN) == [("a", 33)]


def test_a_worse_claim_changes_nothing() -> None:
    table = Ranked[str, int]()
    table.apply(GREEN, [("a", 2)])
    assert table.apply(BLUE, [("a", 3)]) == []
    assert table.entries == {"a": 2}


Step = tuple[Source, list[tuple[str, int | None]]]

changes = st.lists(
    st.tuples(
        st.sampled_from([OWN, GREEN, BLUE]),
        st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(1, 3)), max_size=4),
    ),
    max_size=30,
)


@given(changes)
def test_the_outcome_is_that_of_the_claims_whatever_their_order(
    steps: list[Step],
) -> None:
    table = Ranked[str, int]()
    claims: dict[Source, dict[str, int]] = {OWN: {}, GREEN: {}, BLUE: {}}
    told: dict[str, int] = {}
    for source, batch in steps:
        for key, value in table.apply(source, batch):
            if value is None:
                del told[key]
            else:
                told[key] = value
        for key, value in batch:
            if value is None:
                claims[source].pop(key, None)
            else:
                claims[source][key] = value
    expected = {**claims[BLUE], **claims[GREEN], **claims[OWN]}
    assert table.entries == expected
    assert told == expected
