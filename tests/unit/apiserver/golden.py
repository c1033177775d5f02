"""What an exporter's tables make of documents that are applied and deleted, as etcd would hold it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from apiserver.cluster import ClusterIdentity
from apiserver.service_exports import ExportTable
from apiserver.services import ServiceName, ServiceTable, SliceName, Touched
from clustermesh.kube.objects import EndpointSlice, Service, ServiceExport
from clustermesh.wire import endpoint_slices, keys, records
from clustermesh.wire.keys import Kind

GOLDEN = Path(__file__).parents[2] / "golden"
CREATED = "2000-01-01T00:00:00Z"  # what the API server would have given to an object that does not say


class Export:
    """Kinds of documents that no table here takes are passed over."""

    # The kinds whose keys `values` gives completely.
    kinds = (Kind.SERVICES, Kind.SERVICE_EXPORTS)

    def __init__(self, cluster: ClusterIdentity) -> None:
        self.cluster = cluster
        self.services = ServiceTable()
        self.exports = ExportTable()
        self.names: set[ServiceName] = set()
        self.slice_names: set[SliceName] = set()

    def apply(self, *documents: Mapping[str, Any]) -> None:
        for document in documents:
            match document["kind"]:
                case "Service":
                    touched = self.services.set_service(msgspec.convert(document, Service))
                case "EndpointSlice":
                    touched = self.services.set_slice(msgspec.convert(document, EndpointSlice))
                case "ServiceExport":
                    document = {**document, "metadata": {"creationTimestamp": CREATED, **document["metadata"]}}
                    touched = Touched(self.exports.set_export(msgspec.convert(document, ServiceExport)))
                case _:
                    continue
            self.names |= touched.services
            self.slice_names |= touched.slices

    def delete(self, *documents: Mapping[str, Any]) -> None:
        for document in documents:
            match document["kind"]:
                case "Service":
                    self.services.remove_service(msgspec.convert(document, Service).ref)
                case "EndpointSlice":
                    self.services.remove_slice(msgspec.convert(document, EndpointSlice).ref)
                case "ServiceExport":
                    self.exports.remove_export(msgspec.convert(document, ServiceExport).ref)

    def values(self) -> dict[str, bytes]:
        """By key, all that is to be in etcd for peers."""
        return {key: records.encode(record) for key, record in self._records()}

    def slices(self) -> dict[str, bytes]:
        """The same for endpoint slices, before compression."""
        compiled = {name: self.services.compile_slice(self.cluster, name) for name in self.slice_names}
        return {
            keys.endpoint_slice(self.cluster.name, *name): endpoint_slices.encode_message(record)
            for name, record in compiled.items()
            if record is not None
        }

    def _records(self) -> Iterator[tuple[str, records.ServiceRecord | records.ServiceExport]]:
        for name in self.names:
            record, _ = self.services.compile(self.cluster, name)
            export = self.exports.compile(self.cluster, name, self.services.service(name))
            if record is not None:
                yield keys.service(self.cluster.name, *name), record
            if export is not None:
                yield keys.service_export(self.cluster.name, *name), export


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def recorded(path: Path) -> dict[str, str]:
    """Key and value on alternating lines."""
    lines = path.read_text().splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


def expectation(path: Path, kinds: tuple[Kind, ...], cluster: str) -> tuple[dict[str, Any], set[str]]:
    """Values of these kinds that must be there, and keys that must not."""
    prefixes = tuple(keys.state_prefix(kind, cluster) for kind in kinds)
    given = {key: value for key, value in json.loads(path.read_text()).items() if key.startswith(prefixes)}
    absent = {key for key, value in given.items() if value is None}
    return {key: comparable(value) for key, value in given.items() if key not in absent}, absent


def comparable(value: Mapping[str, Any]) -> dict[str, Any]:
    """`"hostnames": {}` equals none, and when an export was made depends on the recording."""
    ignored = {"exportCreationTimestamp"} | ({"hostnames"} if not value.get("hostnames") else set())
    return {field: content for field, content in value.items() if field not in ignored}


def first_difference(path: Path, export: Export) -> str | None:
    """How what is exported differs from a file of expectations; None when it does not."""
    wanted, absent = expectation(path, export.kinds, export.cluster.name)
    found = {key: comparable(json.loads(value)) for key, value in export.values().items()}
    for key in sorted(wanted.keys() | absent | found.keys()):
        if found.get(key) != wanted.get(key):
            return f"{key}: {found.get(key)} instead of {wanted.get(key)}"
    return None
