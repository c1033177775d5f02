"""Whatever a peer's bytes are: a record or a RecordError, nothing else, and at a bounded cost."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire import private, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import Numbering
from clustermesh.wire.validation import Claimant, check_address, check_identity, check_node, check_service
from tests.unit.wire.strategies import IDENTITIES, JSON, JSON_RECORDS, damaged, encode, labels_of, misshaped
from tests.unit.wire.test_golden import EXPORTED, of_key

PEER = Claimant("cluster1", 1, Numbering())


def read(kind: type, raw: bytes) -> Any:
    """Decode, and ask the record all that a reader asks."""
    try:
        record = records.decode(kind, raw)
    except RecordError:
        return None
    match record:
        case records.Node():
            check_node(PEER, record.name, record)
            record.preferred_ip()
            with contextlib.suppress(RecordError):
                record.pod_cidrs()
        case records.AddressRecord():
            check_address(PEER, record.ip, record)
        case records.ServiceRecord():
            check_service(PEER, f"{record.namespace}/{record.name}", record)
        case records.ServiceExport():
            record.created()
        case records.ClusterConfig():
            with contextlib.suppress(RecordError):
                record.kinds()
    return record


@pytest.mark.parametrize("kind", JSON_RECORDS)
@given(data=st.data())
def test_any_bytes(kind: type, data: st.DataObject) -> None:
    read(kind, data.draw(st.binary()))


@pytest.mark.parametrize("kind", JSON_RECORDS)
@given(data=st.data())
def test_damaged_bytes(kind: type, data: st.DataObject) -> None:
    read(kind, data.draw(damaged(encode(data.draw(JSON_RECORDS[kind])))))


@pytest.mark.parametrize("kind", JSON_RECORDS)
@given(data=st.data())
def test_a_value_of_another_shape(kind: type, data: st.DataObject) -> None:
    read(kind, data.draw(misshaped(encode(data.draw(JSON_RECORDS[kind])))))


@pytest.mark.parametrize("key", [key for key in EXPORTED if of_key(key) is not None])
def test_a_record_cut_off_anywhere_is_none(key: str) -> None:
    kind, raw = of_key(key), EXPORTED[key].encode()
    assert kind is not None
    for length in range(len(raw)):
        with pytest.raises(RecordError):
            records.decode(kind, raw[:length])


HOSTILE = {
    "nothing": b"",
    "no object": b"[]",
    "null": b"null",
    "not a number": b'{"ID":NaN,"id":NaN,"ClusterID":NaN,"clusterID":NaN}',
    "an infinite number": b'{"ID":1e999,"id":1e999,"ClusterID":1e999,"clusterID":1e999,"started":1e999}',
    "a number of 5000 digits": b'{"ID":%(n)s,"id":%(n)s,"ClusterID":%(n)s,"clusterID":%(n)s}' % {b"n": b"9" * 5000},
    "deep nesting": b'{"Future":' + b"[" * 100_000,
    "deep nesting beside a null": b'{"id":null,"ID":null,"Future":' + b"[" * 100_000,
    "deep and closed": b'{"IP":null,"Future":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no UTF-8": b'{"Name":"\xff\xfe","IP":"\xff","cluster":"\xff","node":"\xff","implementation":"\xff"}',
    "half a surrogate pair": rb'{"Name":"\ud800","IP":"\ud800","cluster":"\udfff","implementation":"\ud83d"}',
    "two documents": b"{}{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("kind", JSON_RECORDS)
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes(kind: type, raw: bytes) -> None:
    # Nothing of this makes a record, except where every field has a default.
    assert read(kind, raw) is None or kind in (private.PeerSettings, private.PeerList)


@given(st.binary())
def test_any_bytes_as_labels(raw: bytes) -> None:
    with contextlib.suppress(RecordError):
        check_identity(PEER, "65537", records.decode_identity(raw))


@given(data=st.data())
def test_damaged_labels(data: st.DataObject) -> None:
    with contextlib.suppress(RecordError):
        records.decode_identity(data.draw(damaged(labels_of(data.draw(IDENTITIES)))))


@given(st.text(), IDENTITIES)
def test_any_key_of_an_identity(tail: str, identity: dict[str, str]) -> None:
    assert check_identity(PEER, tail, identity) is not None


@given(JSON, st.text(max_size=3))
def test_fields_from_the_future_are_passed_over(value: Any, name: str) -> None:
    raw = encode(records.AddressRecord("10.0.0.1", identity=65537))
    future = encode_json({"x" + name: value})
    assert records.decode(records.AddressRecord, raw[:-1] + b"," + future[1:]) == records.decode(
        records.AddressRecord, raw
    )


def encode_json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()
