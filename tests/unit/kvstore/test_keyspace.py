"""Key ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.kvstore.keyspace import TO_THE_END, prefix_end, prefix_range, successor


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a/", b"a0"), (b"a\xff\xff", b"b"), (b"\xff", TO_THE_END), (b"", TO_THE_END)]
)
def test_the_end_of_a_prefix_is_the_first_key_behind_it(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


@given(prefix=st.binary(min_size=1, max_size=4), key=st.binary(min_size=1, max_size=6))
def test_a_range_holds_exactly_the_keys_with_its_prefix(prefix: bytes, key: bytes) -> None:
    start, end = prefix_range(prefix)
    within = key >= start and (end == TO_THE_END or key < end)
    assert within == key.startswith(prefix)


@given(key=st.binary(), other=st.binary())
def test_no_key_fits_between_a_key_and_its_successor(key: bytes, other: bytes) -> None:
    assert not key < other < successor(key)
