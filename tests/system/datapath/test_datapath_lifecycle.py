"""What outlives a process, what replaces what, and what is said when something is missing."""

import asyncio
import multiprocessing
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.datapath import bpf, loader
from nodeagent.datapath.abi import AddressKey, Code, Config, IpcacheKey, IpcacheValue, Map
from nodeagent.datapath.attach import Attachment
from nodeagent.datapath.datapath import Datapath, Options
from nodeagent.datapath.errors import DatapathError
from nodeagent.datapath.maps import BpfMap, open_pinned
from tests.system.datapath.lab import Node, bpf_file_system, events, ifindex, inside, run, two_nodes

ZERO = bytes(4)
CONFIG = Config(1, 7, 1450, "10.250.0.1")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    with bpf_file_system(tmp_path / "bpf") as path:
        yield path


@pytest.fixture(params=[Attachment.TCX, Attachment.CLSACT])
def own_nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with two_nodes(tmp_path, request.param) as pair:
        yield pair


def entries(count: int) -> list[tuple[bytes, bytes]]:
    return [
        (IpcacheKey.host(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}").pack(), IpcacheValue(n, "10.250.0.2", 2).pack())
        for n in range(count)
    ]


def in_another_process(action: object, *arguments: object) -> None:
    """Run to completion in a process of its own, which then dies with all it had open."""
    child = multiprocessing.get_context("fork").Process(target=action, args=arguments)  # type: ignore[arg-type]
    child.start()
    child.join(60)
    assert child.exitcode == 0


# --- maps ---------------------------------------------------------------------------------------------------------


def _fill(pin_dir: Path) -> None:
    datapath = Datapath(pin_dir)
    datapath.open()
    datapath.configure(CONFIG)
    datapath.maps[Map.IPCACHE].update_batch(entries(100))


def test_maps_outlive_the_process_and_are_adopted(bpffs: Path) -> None:
    in_another_process(_fill, bpffs / "node")
    with Datapath(bpffs / "node") as datapath:
        assert not datapath.renewed
        assert dict(datapath.maps[Map.IPCACHE].items()) == dict(entries(100))
        assert Config.unpack(datapath.maps[Map.CONFIG].lookup(ZERO) or b"") == CONFIG


def test_pinned_maps_can_be_read_without_loading_anything(bpffs: Path) -> None:
    in_another_process(_fill, bpffs / "node")
    maps = open_pinned(bpffs / "node", [Map.IPCACHE])
    with maps[Map.IPCACHE] as ipcache:
        assert len(ipcache) == 100


def test_a_map_of_another_size_keeps_its_entries(bpffs: Path) -> None:
    in_another_process(_fill, bpffs / "node")
    with Datapath(bpffs / "node", Options(max_entries={Map.IPCACHE: 1000})) as datapath:
        ipcache = datapath.maps[Map.IPCACHE]
        assert ipcache.info.max_entries == 1000
        assert dict(ipcache.items()) == dict(entries(100))
        with BpfMap.pinned(bpffs / "node" / "maps" / Map.IPCACHE) as pinned:
            assert pinned.info.id == ipcache.info.id


def test_a_map_of_another_shape_is_replaced_and_reported(bpffs: Path, caplog: pytest.LogCaptureFixture) -> None:
    maps_dir = bpffs / "node" / "maps"
    maps_dir.mkdir(parents=True)
    foreign = BpfMap("cm_nodes", bpf.map_create(bpf.MapType.HASH, 4, 4, 10))
    with foreign:
        bpf.obj_pin(foreign.fd, maps_dir / Map.NODES)
    with Datapath(bpffs / "node") as datapath:
        assert Map.NODES in datapath.renewed
        assert datapath.maps[Map.NODES].info.key_size == AddressKey.layout.size
    assert "cm_nodes" in caplog.text


def test_bulk_work_passes_the_batch_size(bpffs: Path) -> None:
    with Datapath(bpffs / "node") as datapath:
        ipcache, wanted = datapath.maps[Map.IPCACHE], entries(70_000)
        ipcache.update_batch(wanted)
        assert dict(ipcache.items()) == dict(wanted)
        keys = [key for key, _ in wanted]
        assert ipcache.delete_batch(keys[::2]) == 35_000
        assert ipcache.delete_batch(keys[:1000]) == 500
        assert len(ipcache) == 34_500


def test_a_full_map_says_so(bpffs: Path) -> None:
    with (
        Datapath(bpffs / "node", Options(max_entries={Map.IPCACHE: 10})) as datapath,
        pytest.raises(DatapathError, match="cm_ipcache is full"),
    ):
        datapath.maps[Map.IPCACHE].update_batch(entries(11))


# --- programs -----------------------------------------------------------------------------------------------------


def _udp_answers(client: socket.socket, server: socket.socket, address: tuple[str, int], number: int) -> bool:
    client.sendto(struct.pack(">I", number), address)
    question, peer = server.recvfrom(100)
    server.sendto(question, peer)
    return client.recv(100) == question


def test_programs_carry_on_when_their_process_is_gone(own_nodes: tuple[Node, Node]) -> None:
    a, b = own_nodes
    for node in own_nodes:
        node.datapath.close()
    with b.pods[0].open_socket(socket.SOCK_DGRAM) as server, a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 9000))
        assert _udp_answers(client, server, (b.pods[0].ip, 9000), 1)


def test_replacing_the_programs_under_traffic_loses_nothing(own_nodes: tuple[Node, Node]) -> None:
    a, b = own_nodes
    a.serve("10.101.2.1", 80, 17, [(b.pods[0].ip, 9001)])
    stop, lost, answered = threading.Event(), [], []

    def ask() -> None:
        with b.pods[0].open_socket(socket.SOCK_DGRAM) as server, a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
            server.bind(("0.0.0.0", 9001))
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    _udp_answers(client, server, ("10.101.2.1", 80), number)
                    answered.append(number)
                except TimeoutError:
                    lost.append(number)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(20):
            with a.load() as successor, inside(a.namespace):
                successor.attach_tunnel(ifindex(a.namespace, "cm_vxlan"))
                for pod in a.pods:
                    successor.attach_pod(pod.ifindex)
    finally:
        stop.set()
        asking.join()
    assert not lost
    assert len(answered) > 100


def test_what_is_attached_is_known_and_can_be_detached(own_nodes: tuple[Node, Node]) -> None:
    a, _ = own_nodes
    indexes = {pod.ifindex for pod in a.pods}
    with inside(a.namespace), a.load() as successor:
        assert successor.attached_pods() == indexes
        assert successor.attached_tunnels() == {ifindex(a.namespace, "cm_vxlan")}
        successor.detach_pod(a.pods[0].ifindex)
        successor.detach_pod(a.pods[0].ifindex)
        assert successor.attached_pods() == {a.pods[1].ifindex}
        successor.remove()
        assert not successor.attached_pods() | successor.attached_tunnels()
    assert not list((a.pin_dir / "maps").iterdir())


def test_a_device_that_inherits_a_number_gets_its_own_link(tmp_path: Path) -> None:
    with two_nodes(tmp_path, Attachment.TCX) as (a, _):
        pod, number = a.pods[0], a.pods[0].ifindex
        run("ip", "-n", a.namespace, "link", "del", pod.device)
        run("ip", "-n", a.namespace, "link", "add", "lxcnew", "index", str(number), "type", "veth", "peer", "name", "x")
        with inside(a.namespace):
            assert a.datapath.attached_pods() == {a.pods[1].ifindex}
            a.datapath.attach_pod(number)
            assert a.datapath.attached_pods() == {number, a.pods[1].ifindex}


def test_pins_of_devices_that_are_gone_go_too(tmp_path: Path) -> None:
    with two_nodes(tmp_path, Attachment.TCX) as (a, _):
        run("ip", "-n", a.namespace, "link", "del", a.pods[0].device)
        links = a.pin_dir / "links"
        assert len(list(links.iterdir())) == 6
        a.datapath.attached_pods()
        assert len(list(links.iterdir())) == 4


def test_attaching_to_no_device_says_so(bpffs: Path) -> None:
    with Datapath(bpffs / "node") as datapath, pytest.raises(DatapathError, match="no such device"):
        datapath.attach_pod(987654)


async def test_events_arrive_as_they_happen(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as (a, b):
        events(a)
        async with asyncio.timeout(10):
            stream = a.datapath.events()
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
                client.sendto(b"x", (b.pods[0].ip, 9))
                event = await waiting
            await stream.aclose()
        assert (event.code, event.source, event.destination) == (Code.TO_TUNNEL, a.pods[0].ip, b.pods[0].ip)


# --- what is missing ----------------------------------------------------------------------------------------------


def test_a_pin_directory_off_the_bpf_file_system_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match="mount -t bpf"):
        Datapath(tmp_path / "node").open()


def test_missing_objects_are_named(bpffs: Path, tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match="make bpf"):
        Datapath(bpffs / "node", Options(objects=tmp_path)).open()


def test_an_object_that_is_none_is_refused(bpffs: Path, tmp_path: Path) -> None:
    (tmp_path / "pod.bpf.o").write_bytes(b"not an object")
    with pytest.raises(DatapathError, match=r"pod\.bpf\.o"):
        Datapath(bpffs / "node", Options(objects=tmp_path)).open()


def test_a_refused_program_comes_with_the_verifiers_words(bpffs: Path, tmp_path: Path) -> None:
    """The program is made unsafe by turning its first "if the map value is missing" around."""
    for path in loader.OBJECTS.glob("*.o"):
        shutil.copy(path, tmp_path)
    target = tmp_path / "pod.bpf.o"
    code = bytearray(target.read_bytes())
    # Opcode 0x15/0x55 (jump if equal / not equal to 0 on r0), following a call (0x85).
    for at in range(64, len(code) - 16, 8):
        if code[at] == 0x85 and code[at + 8] in (0x15, 0x55) and code[at + 9] == 0:
            code[at + 8] ^= 0x40
    target.write_bytes(code)
    with pytest.raises(DatapathError, match=r"(?s)kernel refused pod\.bpf\.o.*(invalid|unbounded|R\d)"):
        Datapath(bpffs / "node", Options(objects=tmp_path)).open()


def _without_rights(pin_dir: Path) -> None:
    os.setuid(65534)
    with pytest.raises(DatapathError, match="CAP_BPF"):
        Datapath(pin_dir).open()


def test_missing_rights_are_named(bpffs: Path) -> None:
    in_another_process(_without_rights, bpffs / "node")


def test_maps_that_no_agent_pinned_are_named(bpffs: Path) -> None:
    with pytest.raises(DatapathError, match="has the agent of this node ever run"):
        open_pinned(bpffs / "node")


def test_demanding_tcx_of_a_kernel_without_it_is_refused(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(bpf, "link_create_tcx", unknown)
    with pytest.raises(DatapathError, match=r"no TCX.*use clsact"):
        Datapath(bpffs / "node", Options(attachment=Attachment.TCX)).open()
    with Datapath(bpffs / "node") as datapath:
        assert datapath.attachment is Attachment.CLSACT
