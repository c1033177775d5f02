"""What an agent does before it touches the kernel."""

import socket
from pathlib import Path

import pytest

from clustermesh.kvstore.connection import TlsFiles
from nodeagent.agent import Agent, Settings
from nodeagent.place import Place


async def test_a_port_in_use_is_noticed_before_the_kernel_is_touched(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pins = tmp_path / "no" / "bpf" / "file" / "system"
        settings = Settings(Place("red-1", "red", 1), ("https://127.0.0.1:1",), files, pins, ("127.0.0.1", port))
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use: .*--listen"):
            await Agent(settings).run()
    assert not pins.exists()
