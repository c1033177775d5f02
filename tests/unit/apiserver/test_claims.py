"""Who owns which addresses."""

from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from apiserver.claims import Claims

networks = st.builds(
    lambda number, bits: IPv4Network((number >> bits << bits, 32 - bits)),
    st.integers(10 << 24, (10 << 24) + 0xFFFF),
    st.integers(0, 16),
)
owners = st.sampled_from(["red", "green", "blue"])


def test_a_range_inside_equal_to_or_around_anothers_is_found() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [ip_network("10.1.1.0/24")])
    for text in ("10.1.1.128/25", "10.1.1.0/24", "10.1.0.0/16", "10.1.1.7/32"):
        assert claims.others("green", ip_network(text)) == "red", text
    assert claims.others("green", ip_network("10.1.2.0/24")) is None
    assert claims.others("red", ip_network("10.1.0.0/16")) is None


def test_a_nodes_own_address_is_a_range_of_one() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [], [ip_address("192.0.2.1"), ip_address("fd00::1")])
    assert claims.others("green", ip_network("192.0.2.0/24")) == "red"
    assert claims.others("green", ip_network("fd00::/64")) == "red"
    assert claims.holds("red", ip_address("192.0.2.1"))
    assert not claims.holds("red", ip_address("192.0.2.2"))


def test_a_node_that_changes_its_range_gives_the_old_one_back() -> None:
    claims = Claims()
    claims.hold("red", "red-1", [ip_network("10.1.1.0/24")])
    claims.hold("red", "red-1", [ip_network("10.1.2.0/24")])
    assert claims.others("green", ip_network("10.1.1.0/24")) is None
    claims.release_all("red")
    assert claims.others("green", ip_network("10.0.0.0/8")) is None


def test_a_range_that_two_nodes_claim_stays_until_both_are_gone() -> None:
    claims = Claims()
    for node in ("red-1", "red-2"):
        claims.hold("red", node, [ip_network("10.1.1.0/24")])
    claims.release("red", "red-1")
    assert claims.holds("red", ip_address("10.1.1.1"))
    claims.release("red", "red-2")
    assert not claims.holds("red", ip_address("10.1.1.1"))


@given(
    st.lists(st.tuples(owners, st.integers(0, 5), st.lists(networks, max_size=3)), max_size=25),
    st.lists(st.tuples(owners, networks), min_size=1, max_size=6),
)
def test_answers_equal_those_of_comparing_everything(
    steps: list[tuple[str, int, list[IPv4Network]]], questions: list[tuple[str, IPv4Network]]
) -> None:
    claims, plain = Claims(), dict[tuple[str, int], list[IPv4Network]]()
    for owner, node, ranges in steps:
        claims.hold(owner, str(node), ranges)
        plain[owner, node] = ranges
        for asker, network in questions:
            overlapping = {o for (o, _), held in plain.items() for other in held if other.overlaps(network)}
            found = claims.others(asker, network)
            assert found in overlapping - {asker} or (found is None and overlapping <= {asker})
            first = network.network_address
            holders = {o for (o, _), held in plain.items() for other in held if first in other}
            assert claims.holds(asker, first) == (asker in holders)
