"""The exporter's records against what Cilium's exporter wrote for the same objects. What these files are: golden/README
of the recording; cluster red has id 7."""

from pathlib import Path

import msgspec
import pytest

from apiserver.cluster import ClusterIdentity
from clustermesh.wire import keys, records
from tests.unit.apiserver.golden import GOLDEN, Export, documents, first_difference, recorded

CASES = sorted(path.name.removesuffix(".expected.json") for path in (GOLDEN / "services").glob("*.expected.json"))


@pytest.mark.parametrize("case", CASES)
def test_objects_are_exported_as_cilium_does_it(case: str) -> None:
    def path(suffix: str) -> Path:
        return GOLDEN / "services" / f"{case}.{suffix}"

    export = Export(ClusterIdentity("red", 7))
    export.apply(*documents(path("yaml")))
    if path("before.json").exists():
        assert first_difference(path("before.json"), export) is None
    if path("then-apply.yaml").exists():
        export.apply(*documents(path("then-apply.yaml")))
    if path("then-delete.yaml").exists():
        export.delete(*documents(path("then-delete.yaml")))
    assert first_difference(path("expected.json"), export) is None


def test_a_whole_cluster_gives_the_bytes_that_cilium_wrote() -> None:
    written = recorded(GOLDEN / "exported-by-cilium.txt")
    export = Export(ClusterIdentity("cluster1", 1))
    # The recording has one export more than its input says.
    headless = {"kind": "ServiceExport", "metadata": {"name": "headless", "namespace": "demo"}}
    for document in (*documents(GOLDEN / "input.yaml"), headless):
        document["metadata"]["creationTimestamp"] = "2026-11-22T19:35:30Z"
        export.apply(document)
    prefixes = tuple(keys.state_prefix(kind, "cluster1") for kind in export.kinds)
    found = {key: without_zones(value).decode() for key, value in export.values().items()}
    assert found == {key: value for key, value in written.items() if key.startswith(prefixes)}


def without_zones(value: bytes) -> bytes:
    """The recording is older than these."""
    if b'"zones"' not in value:
        return value
    return records.encode(msgspec.structs.replace(records.decode(records.ServiceRecord, value), zones=msgspec.UNSET))
