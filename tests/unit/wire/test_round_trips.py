"""What is written comes back as it was, and goes out again as the same bytes."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire import endpoint_slices, keys, records
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.keys import Kind
from tests.unit.wire.strategies import ENDPOINT_SLICES, IDENTITIES, JSON_RECORDS, NAME, encode


@pytest.mark.parametrize("kind", JSON_RECORDS)
@given(data=st.data())
def test_a_record_comes_back_as_it_was_written(kind: type, data: st.DataObject) -> None:
    record: Any = data.draw(JSON_RECORDS[kind])
    raw = encode(record)
    assert records.decode(kind, raw) == record
    assert encode(records.decode(kind, raw)) == raw


@given(IDENTITIES)
def test_labels_come_back_as_they_were_written(identity: Mapping[str, str]) -> None:
    raw = records.encode_identity(identity)
    assert records.decode_identity(raw) == identity
    assert records.encode_identity(records.decode_identity(raw)) == raw


@given(ENDPOINT_SLICES)
def test_an_endpoint_slice_comes_back_as_it_was_written(record: ClusterEndpointSlice) -> None:
    raw = endpoint_slices.encode(record)
    assert endpoint_slices.decode(raw) == record
    assert endpoint_slices.encode(endpoint_slices.decode(raw)) == raw


@pytest.mark.parametrize("kind", Kind)
@given(cluster=NAME, tail=st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_copys_key_leads_back_to_the_record_whatever_characters_it_holds(kind: Kind, cluster: str, tail: str) -> None:
    key = keys.state_prefix(kind, cluster) + tail
    copy = keys.cached_key(kind, cluster, key)
    assert keys.tail(keys.cache_prefix(kind, cluster), copy) == tail
    assert keys.tail(keys.state_prefix(kind, cluster), key) == tail


@given(cluster=NAME, other=NAME, kind=st.sampled_from(Kind))
def test_no_cluster_lies_below_anothers_prefix(cluster: str, other: str, kind: Kind) -> None:
    if cluster != other:
        with pytest.raises(ValueError, match="is not below"):
            keys.tail(keys.cache_prefix(kind, cluster), keys.cache_prefix(kind, other))
        with pytest.raises(ValueError, match="is not below"):
            keys.tail(keys.synced_prefix(cluster), keys.cache_canary(kind, other))
