"""What a kubelet makes of a pod: addresses, commands, environment; and the server behind the echo image."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clustermesh.testbed import containers, echo, podnetwork, topology
from clustermesh.testbed.containers import ContainerError, Place
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.objects import Pod

NODE = topology.plan("x", 0, ["red"], 1).node("red-1")
PLACE = Place("x", NODE, "cm-x-red-1-aaaaaa", "10.1.1.7")


def pod(**container: Any) -> Pod:
    return msgspec.convert(
        {
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", **container}], "serviceAccountName": "cart"},
        },
        Pod,
    )


def command(**container: Any) -> containers.Command:
    made = pod(**container)
    return containers.command(made, made.spec.containers[0], PLACE)


def test_addresses_are_given_out_in_turn_and_rest_after_use() -> None:
    pool = podnetwork.AddressPool("10.1.1.0/29")
    pool.reserve(["10.1.1.3"])
    assert [pool.take(), pool.take()] == ["10.1.1.2", "10.1.1.4"]
    pool.give_back("10.1.1.2")
    assert [pool.take(), pool.take(), pool.take()] == ["10.1.1.5", "10.1.1.6", "10.1.1.2"]
    with pytest.raises(TestbedError, match="all 5 pod addresses"):
        pool.take()


@pytest.mark.parametrize("image", ["clustermesh/echo", "clustermesh/echo:1.2", "clustermesh/echo@sha256:0"])
def test_the_echo_image_is_the_built_in_server(image: str) -> None:
    made = command(image=image)
    assert made.argv == (sys.executable, "-I", "-S", str(Path(echo.__file__)))
    assert (made.environment["CLUSTER_NAME"], made.environment["NODE_NAME"]) == ("red", "red-1")


def test_another_image_needs_a_command() -> None:
    with pytest.raises(ContainerError, match="pulls no images") as caught:
        command(image="nginx")
    assert caught.value.reason == "ImageNotPulled"
    assert command(image="nginx", command=["sleep"], args=["1"]).argv == ("sleep", "1")


def test_variables_come_from_values_and_fields_and_refer_to_each_other() -> None:
    fields = {
        "NAME": "metadata.name",
        "SPACE": "metadata.namespace",
        "UID": "metadata.uid",
        "APP": "metadata.labels['app']",
        "NODE": "spec.nodeName",
        "ACCOUNT": "spec.serviceAccountName",
        "IP": "status.podIP",
        "HOST": "status.hostIP",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    env.append({"name": "URL", "value": "http://$(IP)/$(UNKNOWN)"})
    made = command(image="any", command=["run", "--host=$(HOST)"], env=env)
    assert {name: made.environment[name] for name in fields} == {
        "NAME": "web-1",
        "SPACE": "shop",
        "UID": "u1",
        "APP": "web",
        "NODE": "red-1",
        "ACCOUNT": "cart",
        "IP": "10.1.1.7",
        "HOST": NODE.address,
    }
    assert made.environment["URL"] == "http://10.1.1.7/$(UNKNOWN)"
    assert made.argv == ("run", f"--host={NODE.address}")


@pytest.mark.parametrize(
    "source", [{"secretKeyRef": {"name": "s", "key": "k"}}, {"fieldRef": {"fieldPath": "spec.nonsense"}}]
)
def test_a_variable_that_cannot_be_filled_is_an_error(source: dict[str, Any]) -> None:
    with pytest.raises(ContainerError) as caught:
        command(image="any", command=["run"], env=[{"name": "A", "valueFrom": source}])
    assert caught.value.reason == "CreateContainerConfigError"


# The echo server


@pytest.fixture
def server() -> Iterator[echo.EchoServer]:
    made = echo.EchoServer(0, {"cluster": "red", "node": "red-1", "namespace": "shop", "pod": "web-1"})
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.drain()
        thread.join(10)
        assert not thread.is_alive()


def test_echo_says_who_answers_and_who_asked_and_keeps_the_connection(server: echo.EchoServer) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    for path in ("/", "/any?x=1"):
        client.request("GET", path)
        answer = client.getresponse()
        assert json.loads(answer.read()) == {
            "cluster": "red",
            "node": "red-1",
            "namespace": "shop",
            "pod": "web-1",
            "client": "127.0.0.1",
        }
        assert answer.getheader("Connection") == "keep-alive"
    client.close()


def test_echo_serves_others_while_one_client_is_slow(server: echo.EchoServer) -> None:
    slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    slow.connect()
    slow.sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n")
    quick = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    quick.request("GET", "/", headers={"Accept": "text/plain"})
    assert b"cluster=red node=red-1" in quick.getresponse().read()
    slow.sock.sendall(b"\r\n12345")
    slow.sock.sendall(b"67890GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    received = b""
    while part := slow.sock.recv(65536):
        received += part
    assert received.count(b"HTTP/1.1 200 OK") == 2
    slow.close()
    quick.close()


def test_echo_refuses_what_is_no_http(server: echo.EchoServer) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    client.connect()
    client.sock.sendall(b"nonsense\r\n\r\n")
    assert client.sock.recv(100).startswith(b"HTTP/1.1 400")
    client.close()
