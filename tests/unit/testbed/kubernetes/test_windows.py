"""The window of kept changes gives all of them or says that it cannot."""

import pytest

from clustermesh.testbed.kubernetes.cache import Change, Window
from clustermesh.testbed.kubernetes.errors import ApiError


def filled(*revisions: int, oldest: int = 0, size: int = 3) -> Window:
    window = Window(oldest, size)
    for revision in revisions:
        window.append(Change(revision, "key", {}, None))
    return window


def test_changes_after_a_revision_are_given_in_order() -> None:
    window = filled(5, 7, 9)
    assert [change.revision for change in window.read(window.seek(5))] == [7, 9]
    assert [change.revision for change in window.read(window.seek(6))] == [7, 9]
    assert window.read(window.seek(9)) == []
    assert window.read(window.seek(20)) == []


@pytest.mark.parametrize(("revision", "gone"), [(4, True), (5, False), (6, False)])
def test_what_may_have_been_dropped_is_gone(revision: int, gone: bool) -> None:
    window = filled(5, 7, 9, 11)
    if not gone:
        assert [change.revision for change in window.read(window.seek(revision))] == [7, 9, 11]
        return
    with pytest.raises(ApiError) as caught:
        window.seek(revision)
    assert caught.value.code == 410


def test_a_window_that_begins_with_a_list_knows_nothing_before_it() -> None:
    with pytest.raises(ApiError):
        filled(oldest=10).seek(9)
    assert filled(oldest=10).seek(10) == 0


def test_a_reader_that_is_too_slow_is_told() -> None:
    window = filled(1, 2)
    cursor = window.seek(1)
    for revision in (3, 4, 5):
        window.append(Change(revision, "key", {}, None))
    with pytest.raises(ApiError):
        window.read(cursor)


def test_readers_of_a_closed_window_are_told() -> None:
    window = filled(1)
    window.close()
    with pytest.raises(ApiError):
        window.read(window.end)
