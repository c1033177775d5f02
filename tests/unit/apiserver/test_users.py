"""Users and roles of a cluster's etcd, byte for byte as Cilium's readers expect them."""

import pytest

from apiserver.exposure import keeps_users_apart
from apiserver.users import LOCAL, REMOTE, foreign, own_users, roles, surplus


def ranges(role: str) -> set[tuple[str, bytes, bytes]]:
    return {(permission.kind, *permission.range()) for permission in roles("red")[role]}


def test_peers_read_the_ranges_that_cilium_gives_them() -> None:
    assert ranges(REMOTE) == {
        ("read", b"cilium/.heartbeat", b"cilium/.heartbeau"),  # a prefix, without a slash
        ("read", b"cilium/state/", b"cilium/state0"),
        ("read", b"cilium/synced/red/", b"cilium/synced/red0"),
        ("read", b"cilium/cluster-config/red", b""),  # that key alone
    }


def test_agents_read_the_mesh_and_write_nothing_but_their_reports() -> None:
    assert ranges(LOCAL) == {
        ("read", b"cilium/.heartbeat", b"cilium/.heartbeau"),
        ("read", b"cilium/cache/", b"cilium/cache0"),
        ("read", b"cilium/state/", b"cilium/state0"),
        ("read", b"cilium/cluster-config/", b"cilium/cluster-config0"),
        ("read", b"cilium/synced/", b"cilium/synced0"),
        ("read", b"clustermesh/", b"clustermesh0"),
        ("readwrite", b"clustermesh/agents/v1/", b"clustermesh/agents/v10"),
    }


def test_only_users_of_peers_are_ever_deleted() -> None:
    users = [*own_users("red"), "remote", "remote-green", "remote-gone", "externalworkload", "remoteness"]
    assert surplus(users, frozenset({"green", "blue"})) == ["remote", "remote-gone"]
    assert surplus(users, frozenset()) == ["remote", "remote-gone", "remote-green"]


def test_what_nobody_here_made_is_named() -> None:
    users = [*own_users("red"), "remote", "remote-gone", "admin-green", "backup"]
    assert foreign("red", users, ["root", LOCAL, REMOTE, "externalworkload"]) == [
        "user admin-green",
        "user backup",
        "role externalworkload",
    ]
    assert foreign("red", list(own_users("red")), ["root", LOCAL, REMOTE]) == []


@pytest.mark.parametrize(
    ("version", "apart"),
    [
        ("3.4.23", False),
        ("3.4.99", False),
        ("3.5.32", False),
        ("3.5.33", True),
        ("3.5.33-rc.0", True),
        ("3.6.14", True),
        ("3.7.0", False),
        ("3.8.0", True),
        ("4.0.0", True),
        ("unknown", True),
        ("", True),
    ],
)
def test_an_etcd_whose_users_can_be_got_round_is_known_by_its_version(version: str, apart: bool) -> None:
    assert keeps_users_apart(version) is apart
