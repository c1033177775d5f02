"""Probes as bytes, and what their answers say."""

import socket
import struct
import time

from clustermesh.wire.private import ProbeReport
from nodeagent.datapath.abi import PROBE_MAGIC, PROBE_PAYLOAD, PROBE_PORT, PROBE_REQUEST, AddressKey, Map, ProbeValue
from nodeagent.probes import LATEST, Prober, frame
from tests.unit.nodeagent.memory_map import MemoryMap


def test_a_probe_is_a_udp_packet_from_node_to_node() -> None:
    raw = frame("192.0.2.1", "192.0.2.2", 7, 123456789)
    assert raw[12:14] == b"\x08\x00"
    header, udp, payload = raw[14:34], raw[34:42], raw[42:]
    total = sum(struct.unpack("!10H", header))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # the header's checksum fits
    assert struct.unpack("!H", header[2:4]) == (len(raw) - 14,)
    assert (socket.inet_ntoa(header[12:16]), socket.inet_ntoa(header[16:20])) == ("192.0.2.1", "192.0.2.2")
    assert struct.unpack("!HHH", udp[:6]) == (PROBE_PORT, PROBE_PORT, len(udp) + len(payload))
    assert PROBE_PAYLOAD.unpack(payload) == (PROBE_MAGIC, PROBE_REQUEST, 7, 123456789)


def answer(age: float, rtt_us: int) -> bytes:
    received = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(age * 1e9)
    return ProbeValue(received - rtt_us * 1000, received, 1, rtt_us).pack()


def test_nodes_are_reachable_while_their_latest_answer_is_fresh() -> None:
    answers = MemoryMap(Map.PROBES, [])
    answers.content = {
        AddressKey("192.0.2.1").pack(): answer(0.1, 100),
        AddressKey("192.0.2.2").pack(): answer(0.1, 300),
        AddressKey("192.0.2.3").pack(): answer(LATEST + 1, 200),
    }
    prober = Prober(answers)
    targets = [f"192.0.2.{number}" for number in range(1, 5)]
    prober.retarget(targets)
    assert prober.report(targets) == ProbeReport(0, 4, 0)  # nothing was read yet
    prober.read()
    assert prober.report(targets) == ProbeReport(2, 4, 100)
    assert prober.report([]) == ProbeReport(0, 0, 0)


def test_a_node_that_is_no_target_any_more_is_forgotten() -> None:
    answers = MemoryMap(Map.PROBES, [])
    answers.content = {AddressKey("192.0.2.1").pack(): answer(0.1, 100)}
    prober = Prober(answers)
    prober.retarget(["192.0.2.1"])
    prober.read()
    prober.retarget([])
    assert not answers.content
    assert prober.report(["192.0.2.1"]) == ProbeReport(0, 1, 0)
