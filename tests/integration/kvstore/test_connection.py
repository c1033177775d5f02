"""Operations on a real etcd, and what is said when they fail."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Change, Connection, TlsPem
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.feed import Feed, FeedState
from clustermesh.pki import CertificateAuthority
from tests.integration.etcd_process import SERVER_NAME, EtcdProcess, free_ports
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


async def failure(connection: Connection) -> KvError:
    async with connection:
        with pytest.raises(KvError) as caught:
            await connection.get("x")
    assert connection.last_error is caught.value
    return caught.value


async def test_a_key_can_be_written_read_listed_and_deleted(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    revision = await kv.put("a/1", b"one")
    found = await kv.get("a/1")
    assert found is not None
    assert (found.key, found.value, found.mod_revision, found.lease) == (b"a/1", b"one", revision, 0)
    await kv.commit([Change(b"a/2", b"two"), Change(b"b/1", b"other"), Change(b"a/1", None)])
    assert [kv.key async for page in kv.list("a/") for kv in page] == [b"a/2"]
    assert await kv.delete("a/2") is True
    assert await kv.delete("a/2") is False
    assert await kv.delete_prefix("") == 1
    assert kv.cluster_id


async def test_a_list_shows_one_revision_whatever_is_written_meanwhile(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await kv.commit([Change(b"a/%02d" % number, b"") for number in range(30)])
    seen = []
    async for page in kv.list("a/", page=10):
        seen += [found.key for found in page]
        await kv.put("a/99", b"later")
        await kv.delete("a/29")
    assert seen == [b"a/%02d" % number for number in range(30)]


async def test_a_page_of_a_range_tells_what_is_left(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    revision = await kv.commit([Change(b"a/%d" % number, b"") for number in range(5)])
    page = await kv.range("a/", b"a0", limit=2)
    assert ([found.key for found in page.kvs], page.more, page.count) == ([b"a/0", b"a/1"], True, 5)
    assert page.revision == revision == await kv.current_revision()


async def test_guarded_writes_tell_how_the_key_stands(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    created = await kv.guarded_put("a", b"1", 0)
    assert created.succeeded
    again = await kv.guarded_put("a", b"2", 0)
    assert not again.succeeded
    assert again.current is not None
    assert (again.current.value, again.current.mod_revision) == (b"1", created.revision)
    assert await kv.compare_and_put("a", b"3", created.revision)
    assert not (await kv.guarded_delete("a", created.revision)).succeeded
    assert (await kv.guarded_delete("gone", 7)).current is None
    found = await kv.get("a")
    assert found is not None
    assert (await kv.guarded_delete("a", found.mod_revision)).succeeded


async def test_old_and_future_revisions_are_told_apart(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    first = await kv.put("a", b"1")
    await kv.put("a", b"2")
    await etcd.compact()
    with pytest.raises(KvError) as caught:
        await kv.range("a", revision=first)
    assert caught.value.stage is Stage.COMPACTED
    with pytest.raises(KvError) as caught:
        await kv.range("a", revision=1000)
    assert caught.value.stage is Stage.FUTURE


async def test_a_full_store_and_an_oversized_value_are_told_apart(tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path, options=["--quota-backend-bytes=16777216"])
    try:
        await etcd.start()
        kv = etcd.connection()
        with pytest.raises(KvError) as caught:
            await kv.put("a", b"x" * 2_000_000)
        assert caught.value.stage is Stage.TOO_LARGE
        with pytest.raises(KvError) as caught:
            for number in range(40):
                await kv.put(f"a/{number}", b"x" * 1_000_000)
        assert caught.value.stage is Stage.FULL
        assert "NOSPACE" in " ".join((await kv.status()).alarms)
    finally:
        await etcd.close()


async def test_the_network_stages_of_a_failure(etcd: EtcdProcess) -> None:
    (port,) = free_ports(1)
    refused = await failure(Connection([f"https://127.0.0.1:{port}"], etcd.client_pem()))
    assert refused.stage is Stage.TCP
    assert "refused" in str(refused)
    unknown = await failure(Connection(["https://no-such-host.invalid"], etcd.client_pem()))
    assert unknown.stage is Stage.DNS
    assert "no-such-host.invalid" in str(unknown)


async def test_the_tls_failures_name_their_reason(etcd: EtcdProcess) -> None:
    good, stranger = etcd.client_pem(), CertificateAuthority.create("red")
    foreign = stranger.issue_client("root")
    wrong_ca = await failure(Connection([etcd.endpoint], TlsPem(stranger.cert, good.cert, good.key)))
    wrong_name = await failure(Connection([etcd.endpoint], good, server_name="green.mesh.cilium.io"))
    refused = await failure(Connection([etcd.endpoint], TlsPem(good.ca, foreign.cert, foreign.key)))
    assert {error.stage for error in (wrong_ca, wrong_name, refused)} == {Stage.TLS}
    assert "not signed by the CA we trust" in wrong_ca.message
    assert "does not name green.mesh.cilium.io" in wrong_name.message
    assert "refused our client certificate" in refused.message
    async with Connection([etcd.endpoint], good, server_name=SERVER_NAME) as named:
        assert await named.get("x") is None


async def test_expired_certificates_of_either_side_are_named(etcd: EtcdProcess) -> None:
    good = etcd.client_pem()
    client = await failure(Connection([etcd.endpoint], TlsPem(good.ca, etcd.expired(good.cert), good.key)))
    assert client.stage is Stage.TLS
    assert "expired" in client.message
    etcd.server.cert.write_bytes(etcd.expired(etcd.server.cert.read_bytes()))
    server = await failure(etcd.connection())
    assert server.stage is Stage.TLS
    assert "the server's certificate has expired" in server.message


async def test_unusable_credentials_are_an_error_of_ours(etcd: EtcdProcess, tmp_path: Path) -> None:
    good, other = etcd.client_pem(), etcd.client_pem()
    mixed = await failure(Connection([etcd.endpoint], TlsPem(good.ca, good.cert, other.key)))
    assert mixed.stage is Stage.CREDENTIALS
    files = etcd.client_files()
    files.key.unlink()
    missing = await failure(Connection([etcd.endpoint], files))
    assert missing.stage is Stage.CREDENTIALS
    assert str(files.key) in missing.message


async def test_a_frozen_server_is_a_timeout(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await kv.get("x")
    etcd.freeze()
    with pytest.raises(KvError) as caught:
        await kv.range("x", timeout=1.0)
    assert caught.value.stage is Stage.TIMEOUT
    etcd.thaw()
    assert await kv.get("x") is None


async def test_the_next_endpoint_is_tried_when_one_fails(etcd: EtcdProcess) -> None:
    (port,) = free_ports(1)
    dead = f"https://127.0.0.1:{port}"
    kv = etcd.connection(endpoints=[dead, etcd.endpoint])
    with pytest.raises(KvError) as caught:
        await kv.get("x")
    assert caught.value.endpoint == dead
    assert await kv.get("x") is None
    assert kv.endpoint == etcd.endpoint


async def test_changed_certificate_files_are_taken_up_without_losing_an_event(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_role("reader", [Permission("read", "a/")])
    for user in ("before", "after"):
        await admin.ensure_user(user, ["reader"])
    files = etcd.client_files("before")
    async with Connection([etcd.endpoint], files) as kv:
        feed = Feed(kv, "a/", progress=0.5)
        async with aclosing(feed.batches()) as batches:
            await anext(batches)
            arriving = asyncio.ensure_future(_collect(batches.__anext__, 40))
            await eventually(lambda: feed.state is FeedState.WATCHING)
            renewed = etcd.ca.issue_client("after")
            files.cert.write_bytes(renewed.cert)  # for a moment the pair does not fit
            for number in range(20):
                await root.put(f"a/{number:02}", b"")
                await asyncio.sleep(0.1)
            files.key.write_bytes(renewed.key)
            await admin.delete_user("before")
            for number in range(20, 40):
                await root.put(f"a/{number:02}", b"")
                await asyncio.sleep(0.1)
            assert await arriving == [b"a/%02d" % number for number in range(40)]
        assert feed.error is None
        assert len((await kv.range("a/", b"a0")).kvs) == 40, "only the renewed user may still read"


async def _collect(following: object, count: int) -> list[bytes]:
    keys: list[bytes] = []
    async with asyncio.timeout(40):
        while len(keys) < count:
            batch = await following()  # type: ignore[operator]
            keys += [event.key for event in batch.events]
    return keys


async def test_renewed_credentials_from_memory_are_used_by_the_next_call(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    async with Connection([etcd.endpoint], etcd.client_pem("nobody")) as kv:
        with pytest.raises(KvError) as caught:
            await kv.get("x")
        assert caught.value.stage is Stage.PERMISSION
        await kv.update_tls(etcd.client_pem("root"))
        assert await kv.get("x") is None
