"""users.yaml: who gets a user of its own in Cilium's etcd. Others' entries and comments stay."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.cilium import users
from clustermesh.cilium.users import UsersError

CHART = "users:\n- name: remote-a\n  role: remote\n- name: remote-b\n  role: remote\n"
BY_HAND = """# peers of east
users:
  # the old one
  - name: remote-a   # until spring
    role: remote
  - role: remote
    name: remote-b

  # not yet:
  # - name: remote-c
other: kept
"""


@pytest.mark.parametrize("text", [CHART, BY_HAND, CHART.rstrip("\n"), "other: kept\n" + CHART])
def test_one_more_is_added_behind_the_last_and_taken_out_without_a_trace(text: str) -> None:
    more = users.add(text, "remote-red")
    assert users.names(more) == ("remote-a", "remote-b", "remote-red")
    assert [line for line in more.splitlines() if line not in text.splitlines()] == [
        line for line in more.splitlines() if "remote-red" in line
    ]
    assert users.add(more, "remote-red") == more
    assert users.remove(more, "remote-red").rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize("text", ["", "users:\n", "users: []\n", "users: null\n", "# nobody\nusers: []\n", "a: b"])
def test_the_first_one_begins_the_list(text: str) -> None:
    one = users.add(text, "remote-red")
    assert users.names(one) == ("remote-red",)
    assert ("# nobody" in text) == ("# nobody" in one)
    none = users.remove(one, "remote-red")
    assert users.names(none) == ()
    assert yaml.safe_load(none)["users"] == []


def test_comments_of_others_stay_when_one_in_the_middle_goes() -> None:
    less = users.remove(BY_HAND, "remote-a")
    assert users.names(less) == ("remote-b",)
    for kept in ("# peers of east", "# the old one", "# not yet:", "other: kept"):
        assert kept in less


def test_a_text_in_another_style_is_written_anew_with_all_its_entries() -> None:
    flow = "users: [{name: remote-a, role: remote, note: '1'}]\n"
    more = users.add(flow, "remote-red")
    assert users.names(more) == ("remote-a", "remote-red")
    assert yaml.safe_load(users.remove(more, "remote-red")) == yaml.safe_load(flow)


@pytest.mark.parametrize("text", ["users: [", "- a", "users: 7", "users: [a]", "\tusers:", "just words"])
def test_what_is_no_list_of_users_is_refused_and_not_overwritten(text: str) -> None:
    for act in (users.add, users.remove):
        with pytest.raises(UsersError, match=r"users\.yaml"):
            act(text, "remote-red")


NAMES = st.text("abc-7.", min_size=1, max_size=9)
ENTRIES = st.lists(st.fixed_dictionaries({"name": NAMES, "role": NAMES}, optional={"note": st.text(max_size=9)}))


@given(ENTRIES, st.dictionaries(NAMES, NAMES), st.booleans(), st.integers(1, 6))
def test_whatever_is_there_survives_coming_and_going(
    entries: list[dict[str, str]], other: dict[str, str], flow: bool, indent: int
) -> None:
    before = {**other, "users": entries}
    text = yaml.safe_dump(before, default_flow_style=flow, indent=indent, sort_keys=False)
    more = users.add(text, "remote-red")
    assert yaml.safe_load(more) == {**before, "users": [*entries, {"name": "remote-red", "role": "remote"}]}
    assert yaml.safe_load(users.remove(more, "remote-red")) == before


@given(st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z", "Cc")), max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        more = users.add("users:\n" + text, "remote-red")
    except UsersError:
        return
    assert "remote-red" in users.names(more)
    assert "remote-red" not in users.names(users.remove(more, "remote-red"))
