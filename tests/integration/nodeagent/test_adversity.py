"""An agent whose own etcd is silent, refusing, or full of nonsense keeps its maps, says why, and goes on by itself."""

import pytest

from apiserver.users import EtcdUsers, roles
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Change
from clustermesh.wire import keys, records
from clustermesh.wire.keys import Kind
from nodeagent.datapath.abi import IpcacheKey, Map
from tests.integration.etcd_process import EtcdProcess
from tests.integration.nodeagent.test_feeds import POD, Node, running, write_own, write_peer
from tests.integration.tcp_proxy import proxied
from tests.unit.nodeagent.records_of import address

pytestmark = pytest.mark.integration

ADDRESSES = keys.cache_prefix(Kind.ADDRESSES, "green")
NEW = IpcacheKey.host("10.2.1.6").pack()
NEW_RECORD = records.encode(address("10.2.1.6", "192.0.2.2", 131079))


async def test_a_half_open_connection_is_given_up_and_what_was_missed_is_caught_up(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write_own(kv)
    await write_peer(kv)
    async with proxied(etcd) as proxy, running(Node(etcd.connection(endpoints=[proxy.endpoint]))) as agent:
        await agent.until(lambda: agent.ready("green"))
        proxy.silence()
        await kv.put(ADDRESSES + "10.2.1.6", NEW_RECORD)
        await kv.delete(ADDRESSES + "10.2.1.5")
        connections = proxy.accepted
        await agent.until(lambda: proxy.accepted > connections)  # given up, and tried anew
        assert agent.knows(POD)
        proxy.speak()
        await agent.until(lambda: agent.knows(NEW) and not agent.knows(POD))


async def test_rights_that_are_taken_away_and_given_back_cost_nothing(
    etcd: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    await EtcdUsers(etcd.connection(), "red").ensure()
    kv, admin = etcd.connection("admin-red"), AuthAdmin(etcd.connection())
    await write_own(kv)
    await write_peer(kv)
    through = etcd.connection
    async with proxied(etcd) as proxy, running(Node(through("local-red", endpoints=[proxy.endpoint]))) as agent:
        await agent.until(lambda: agent.ready("green"))
        await admin.ensure_role("local", [])
        proxy.cut()
        await kv.put(ADDRESSES + "10.2.1.6", NEW_RECORD)
        await agent.until(lambda: f"feed {ADDRESSES}: permission" in caplog.text)
        assert "give this user a role for the key range" in caplog.text
        assert agent.knows(POD)
        await admin.ensure_role("local", list(roles("red")["local"]))
        await agent.until(lambda: agent.knows(NEW))
        assert agent.knows(POD)


async def test_nonsense_of_any_size_is_named_once_and_leaves_everything_else(
    etcd: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    kv = etcd.connection()
    await write_own(kv)
    await write_peer(kv)
    async with running(Node(etcd.connection())) as agent:
        await agent.until(lambda: agent.ready("green"))
        before = {name: dict(one.content) for name, one in agent.maps.items()}
        await kv.put(ADDRESSES + "10.2.1.5", b"{" * 1_400_000)
        for start in range(0, 3000, 100):
            await kv.commit([Change(f"{ADDRESSES}nonsense-{n}".encode(), b"\xff") for n in range(start, start + 100)])
        await kv.put(ADDRESSES + "10.2.1.6", NEW_RECORD)
        await agent.until(lambda: agent.knows(NEW))
        del agent.maps[Map.IPCACHE].content[NEW]
        assert {name: one.content for name, one in agent.maps.items()} == before
        # What is remembered of them, and so what reports and metrics say, is bounded.
        assert 500 < len(agent.mesh.rejected) <= 1000
        named = [line for line in caplog.messages if f"{ADDRESSES}10.2.1.5 of green" in line]
        assert len(named) == 1
        assert len(named[0]) < 500
