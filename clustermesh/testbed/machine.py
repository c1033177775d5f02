"""Whether this machine can carry a testbed; each lack is one TestbedError with its remedy."""

import os
import shutil
from pathlib import Path

from clustermesh.testbed import namespaces
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.topology import namespace_prefix

_PROGRAMS = {"etcd": "etcd-server", "nsenter": "util-linux", "ip": "iproute2"}
_PATH = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"


def check_rights() -> None:
    if os.geteuid() != 0:
        raise TestbedError("a testbed makes network namespaces, which needs root: run it again with sudo")


def check(testbed: str) -> None:
    """Look for programs and kernel features. `testbed` names a namespace that is made and removed for it."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}") is None:
            raise TestbedError(f"{program!r} is missing: install it with 'apt-get install {package}'")
    if not Path("/proc/self/ns/net").exists():
        raise TestbedError("this kernel has no network namespaces (CONFIG_NET_NS): boot another one")
    if "\tbpf\n" not in Path("/proc/filesystems").read_text():
        raise TestbedError("this kernel has no BPF file system (CONFIG_BPF_SYSCALL): boot another one")
    _check_devices(f"{namespace_prefix(testbed)}check")


def _check_devices(namespace: str) -> None:
    namespaces.create(namespace)
    try:
        for kind, options, module in (
            ("vxlan", "external dstport 8472", "vxlan"),
            ("bridge", "", "bridge"),
            ("veth", "peer name probe1", "veth"),
        ):
            try:
                namespaces.configure(namespace, [f"link add name probe-{kind} type {kind} {options}"])
            except TestbedError as error:
                raise TestbedError(
                    f"this kernel cannot make {kind} devices: try 'modprobe {module}', or boot another kernel ({error})"
                ) from None
    finally:
        namespaces.remove(namespace)
