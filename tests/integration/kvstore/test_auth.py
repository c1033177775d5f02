"""Users and roles come to the wanted state from whatever state they are in."""

import pytest

from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.errors import KvError, Stage
from tests.integration.etcd_process import EtcdProcess

pytestmark = pytest.mark.integration


async def test_a_user_reads_what_its_role_says_and_no_more(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    await root.put("cilium/state/a", b"")
    admin = AuthAdmin(root)
    await admin.ensure_role("peer", [Permission("read", "cilium/"), Permission("readwrite", "one", exact=True)])
    await admin.ensure_user("remote-green", ["peer"])
    peer = etcd.connection("remote-green")
    assert await peer.count("cilium/") == 1
    await peer.put("one", b"")
    for key in ("cilium/state/a", "one-more"):
        with pytest.raises(KvError) as caught:
            await peer.put(key, b"")
        assert caught.value.stage is Stage.PERMISSION


async def test_ensuring_twice_changes_nothing_and_a_changed_wish_is_followed(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    for _ in range(2):
        await admin.ensure_role("peer", [Permission("readwrite", "a/"), Permission("read", "b/")])
        await admin.ensure_user("remote-green", ["peer"])
    peer = etcd.connection("remote-green")
    await peer.put("a/1", b"")
    await admin.ensure_role("peer", [Permission("read", "a/")])
    assert await peer.get("a/1") is not None
    with pytest.raises(KvError):
        await peer.put("a/1", b"")
    with pytest.raises(KvError):
        await peer.get("b/1")
    await admin.ensure_user("remote-green", [])
    with pytest.raises(KvError):
        await peer.get("a/1")
    await admin.delete_role("peer")
    await admin.delete_user("remote-green")
    await admin.delete_user("remote-green")
    assert await admin.users() == ["root"]
    assert await admin.roles() == ["root"]
