"""Who owns which addresses."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.claims import NOBODY, Claims, Conflict
from clustermesh.wire.ranges import Range, number_of
from tests.unit.apiserver.ranges import cidr

ranges = st.builds(
    lambda number, bits: Range(4, number >> bits << bits, bits),
    st.integers(10 << 24, (10 << 24) + 0xFFFF),
    st.integers(0, 16),
)
owners = st.sampled_from(["red", "green", "blue"])


def other(claims: Claims, owner: str, text: str) -> str | None:
    found = claims.conflict(owner, cidr(text))
    return found.owner if found is not None else None


def at(claims: Claims, owner: str, text: str) -> tuple[bool, str | None]:
    found = number_of(text)
    assert found is not None
    return claims.at(owner, *found)


def test_a_range_inside_equal_to_or_around_anothers_is_found() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [cidr("10.1.1.0/24")])
    for text in ("10.1.1.128/25", "10.1.1.0/24", "10.1.0.0/16", "10.1.1.7/32"):
        assert other(claims, "green", text) == "red", text
    assert other(claims, "green", "10.1.2.0/24") is None
    assert other(claims, "red", "10.1.0.0/16") is None


def test_a_conflict_says_which_range_must_change_hands() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [cidr("10.1.1.0/24")])
    assert claims.conflict("green", cidr("10.1.1.7/32")) == Conflict("red", cidr("10.1.1.0/24"))
    assert claims.conflict("green", cidr("10.1.0.0/16")) == Conflict("red", cidr("10.1.0.0/16"))


def test_a_nodes_own_address_is_a_range_of_one() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [cidr("192.0.2.1/32"), cidr("fd00::1/128")])
    assert other(claims, "green", "192.0.2.0/24") == "red"
    assert other(claims, "green", "fd00::/64") == "red"
    assert at(claims, "red", "192.0.2.1") == (True, None)
    assert at(claims, "green", "192.0.2.1") == (False, "red")
    assert at(claims, "red", "192.0.2.2") == (False, None)


def test_a_node_that_changes_its_range_gives_the_old_one_back() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [cidr("10.1.1.0/24")])
    claims.hold("red", "red-1", [cidr("10.1.2.0/24")])
    assert other(claims, "green", "10.1.1.0/24") is None
    claims.release_all("red")
    assert other(claims, "green", "10.0.0.0/8") is None


def test_a_range_that_two_nodes_claim_stays_until_both_are_gone() -> None:
    claims = Claims()
    for node in ("red-1", "red-2"):
        claims.hold("red", node, [cidr("10.1.1.0/24")])
    claims.release("red", "red-1")
    assert at(claims, "red", "10.1.1.1") == (True, None)
    claims.release("red", "red-2")
    assert at(claims, "red", "10.1.1.1") == (False, None)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.1.1.1",
    ],
)
def test_special_ranges_belong_to_nobody(text: str) -> None:
    assert at(Claims(), "red", text) == (False, NOBODY)


def test_a_single_address_outside_of_all_ranges_is_its_first_owners_until_a_node_takes_it() -> None:
    claims, found = Claims(), number_of("10.9.9.9")
    assert found is not None
    claims.hold_stray("red", *found)
    claims.hold_stray("green", *found)
    assert claims.at("green", *found) == (False, "red")
    assert other(claims, "green", "10.9.9.0/24") is None
    claims.hold("green", "green-1", [cidr("10.9.9.0/24")])
    assert claims.at("green", *found) == (True, None)
    assert claims.at("red", *found) == (False, "green")
    claims.release_all("green")
    claims.release_stray("red", *found)
    assert claims.at("green", *found) == (False, None)


class _Notes:
    def __init__(self) -> None:
        self.told: list[tuple[str, list[Range], list[Range]]] = []
        self.settled = 0

    def touched(self, owner: str, gained: Sequence[Range], lost: Sequence[Range]) -> bool:
        self.told.append((owner, list(gained), list(lost)))
        return True

    def settle(self) -> int:
        self.settled += 1
        return 3


def test_watchers_are_told_what_changed_hands_and_nothing_else() -> None:
    claims, notes = Claims(), _Notes()
    claims.watch("blue", notes)
    claims.hold("red", "red-1", [cidr("10.1.1.0/24"), cidr("192.0.2.1/32")])
    claims.hold("red", "red-1", [cidr("10.1.2.0/24"), cidr("192.0.2.1/32")])
    claims.hold("red", "red-1", [cidr("10.1.2.0/24"), cidr("192.0.2.1/32")])
    assert notes.told == [
        ("red", [cidr("10.1.1.0/24"), cidr("192.0.2.1/32")], []),
        ("red", [cidr("10.1.2.0/24")], [cidr("10.1.1.0/24")]),
    ]
    assert claims.settle() == 3
    assert claims.settle() == 0
    assert notes.settled == 1
    claims.unwatch("blue", notes)
    claims.release_all("red")
    claims.settle()
    assert (len(notes.told), notes.settled) == (2, 1)


@given(
    st.lists(st.tuples(owners, st.integers(0, 5), st.lists(ranges, max_size=3)), max_size=25),
    st.lists(st.tuples(owners, ranges), min_size=1, max_size=6),
)
def test_answers_equal_those_of_comparing_everything(
    steps: list[tuple[str, int, list[Range]]], questions: list[tuple[str, Range]]
) -> None:
    claims, plain = Claims(), dict[tuple[str, int], list[Range]]()
    for owner, node, held in steps:
        claims.hold(owner, str(node), held)
        plain[owner, node] = held
        for asker, asked in questions:
            overlapping = {o for (o, _), mine in plain.items() for one in mine if one.overlaps(asked)}
            found = claims.conflict(asker, asked)
            assert (found.owner in overlapping - {asker}) if found is not None else overlapping <= {asker}
            assert claims.holds_some(asker, asked) == (asker in overlapping)
            single = Range(4, asked.first, 0)
            holders = {o for (o, _), mine in plain.items() for one in mine if one.overlaps(single)}
            mine, stranger = claims.at(asker, 4, asked.first)
            assert stranger in holders - {asker} if stranger is not None else holders <= {asker}
            assert stranger is not None or mine == (asker in holders)
            assert claims.is_node(asker, 4, asked.first) == any(
                o == asker and single in held for (o, _), held in plain.items()
            )
