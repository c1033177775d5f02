"""Which namespaces are global, and where records of those that are not stand."""

from collections.abc import Mapping

import pytest

from apiserver.namespaces import Namespaces
from apiserver.places import Places
from clustermesh.kube.objects import Namespace, ObjectMeta, ObjectRef
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.writer import Writer


def namespace(annotations: Mapping[str, str] | None = None) -> Namespace:
    return Namespace(metadata=ObjectMeta(name="demo", annotations=annotations))


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize(
    ("says", "expected"), [("true", True), ("True", True), ("false", False), ("", False), ("yes", False), (None, None)]
)
def test_the_annotation_decides_and_else_the_default(says: str | None, expected: bool | None, default: bool) -> None:
    namespaces = Namespaces(default=default)
    annotations = None if says is None else {"clustermesh.cilium.io/global": says, "other": "x"}
    assert namespaces.set(namespace(annotations))
    assert namespaces.is_global("demo") is (default if expected is None else expected)


def test_an_unknown_namespace_is_not_global() -> None:
    namespaces = Namespaces()
    assert not namespaces.is_global("demo")
    assert namespaces.set(namespace())
    assert not namespaces.set(namespace())
    namespaces.remove(ObjectRef("", "demo", ""))
    assert not namespaces.is_global("demo")


@pytest.fixture
def writer() -> Writer:
    """Nobody runs it: what it wants is all that counts here."""
    return Writer(Connection(("http://127.0.0.1:1",), None), None)


@pytest.fixture
def places(writer: Writer) -> Places:
    return Places(writer, "public/".__add__, "private/".__add__)


def standing(writer: Writer) -> dict[str, bytes | None]:
    return {key: value for key in ("public/a", "private/a") if (value := writer.known(key)) is not None}


def test_a_record_stands_in_one_place(places: Places, writer: Writer) -> None:
    assert places.put("a", b"1", public=True)
    assert not places.put("a", b"1", public=True)
    assert standing(writer) == {"public/a": b"1"}
    places.delete("a")
    assert standing(writer) == {}
    assert places.put("a", b"1", public=False)
    assert standing(writer) == {"private/a": b"1"}
    assert places.turn == 0


def test_a_record_that_moves_stands_in_both_until_it_leaves(places: Places, writer: Writer) -> None:
    places.put("a", b"1", public=True)
    places.put("a", b"1", public=False)
    assert standing(writer) == {"public/a": b"1", "private/a": b"1"}
    turn = places.turn
    places.vacate(turn)
    assert standing(writer) == {"private/a": b"1"}
    assert places.turn == 0


def test_anothers_record_is_never_left_behind(places: Places, writer: Writer) -> None:
    places.put("a", b"1", public=True)
    places.put("a", b"2", public=False, replaces=True)
    assert standing(writer) == {"private/a": b"2"}
    places.put("a", b"2", public=True)
    places.put("a", b"3", public=True, replaces=True)
    assert standing(writer) == {"public/a": b"3"}


def test_a_record_that_changes_while_it_moves_leaves_its_former_self_with_the_others(
    places: Places, writer: Writer
) -> None:
    places.put("a", b"1", public=True)
    places.put("a", b"1", public=False)
    places.put("a", b"2", public=False)
    assert standing(writer) == {"public/a": b"1", "private/a": b"2"}
    places.vacate(places.turn)
    assert standing(writer) == {"private/a": b"2"}


def test_who_turns_back_stays(places: Places, writer: Writer) -> None:
    places.put("a", b"1", public=True)
    places.put("a", b"1", public=False)
    early = places.turn
    places.put("a", b"1", public=True)
    places.vacate(early)
    assert standing(writer) == {"public/a": b"1", "private/a": b"1"}, "its stay in both places has just begun"
    places.vacate(places.turn)
    assert standing(writer) == {"public/a": b"1"}
