"""How numbers are dealt out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.identities import IdentityTable, RangeExhausted

FIRST = 65536 + 256


def table(size: int = 4) -> IdentityTable:
    return IdentityTable(65536, FIRST + size - 1)


def test_numbers_are_dealt_out_in_order_and_not_twice() -> None:
    numbers = table()
    assert [numbers.reserve(), numbers.reserve()] == [FIRST, FIRST + 1]


def test_a_number_that_was_given_back_returns_last() -> None:
    numbers = table(3)
    numbers.set(numbers.reserve(), "a")
    numbers.remove(FIRST)
    assert [numbers.reserve() for _ in range(3)] == [FIRST + 1, FIRST + 2, FIRST]


def test_a_full_range_says_so() -> None:
    numbers = table(2)
    numbers.set(FIRST, "a")
    numbers.reserve()
    with pytest.raises(RangeExhausted, match="all 2 identity numbers from 65792 to 65793 are taken"):
        numbers.reserve()


def test_after_a_start_numbers_go_on_behind_the_highest() -> None:
    numbers = table()
    numbers.set(FIRST + 1, "a")
    assert numbers.reserve() == FIRST + 2


def test_of_two_numbers_for_the_same_labels_the_lowest_counts() -> None:
    numbers = table()
    for number in (FIRST + 2, FIRST):
        numbers.set(number, "a")
    assert numbers.lookup("a") == FIRST
    numbers.remove(FIRST)
    assert numbers.lookup("a") == FIRST + 2
    numbers.remove(FIRST + 2)
    assert numbers.lookup("a") is None


@given(st.lists(st.tuples(st.integers(FIRST, FIRST + 5), st.sampled_from(["", "a", "b", "c"]))))
def test_lookup_agrees_with_what_was_set(steps: list[tuple[int, str]]) -> None:
    numbers, model = table(6), dict[int, str]()
    for number, text in steps:
        if text:
            numbers.set(number, text)
            model[number] = text
        else:
            numbers.remove(number)
            model.pop(number, None)
    for text in "abc":
        assert numbers.lookup(text) == min((n for n, its in model.items() if its == text), default=None)
    assert len(numbers) == len(model)
