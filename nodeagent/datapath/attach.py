"""Putting programs on devices: by pinned TCX links, or as clsact filters on kernels before 6.6.

Both outlive the process. Both replace a program that is there without a packet seeing neither or both. Devices are
looked up in the current network namespace.
"""

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.datapath import bpf
from nodeagent.datapath.errors import DatapathError

log = logging.getLogger(__name__)

_NO_DEVICE = 0x7FFFFFFF


class Hook(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class Program(NamedTuple):
    """A program by its name in the object file, and the side of the device it belongs on."""

    name: str
    hook: Hook


class Attachment(StrEnum):
    """How programs are attached; AUTO chooses by what the kernel knows."""

    AUTO = "auto"
    TCX = "tcx"
    CLSACT = "clsact"


class Attacher(Protocol):
    """One way of attaching. Methods raise DatapathError."""

    def attach(self, program: Program, prog_fd: int, ifindex: int) -> None:
        """Attach, or replace what an earlier call (of any process) attached."""

    def detach(self, program: Program, ifindex: int) -> None:
        """Detach; nothing happens if it is not attached or the device has gone."""

    def attached(self, program: Program) -> set[int]:
        """Interface indexes of the living devices that carry it."""


class Tcx:
    """One pinned link for each device and hook: ``<dir>/<program>_<ifindex>``."""

    def __init__(self, links_dir: Path) -> None:
        self._dir = links_dir

    def attach(self, program: Program, prog_fd: int, ifindex: int) -> None:
        path = self._path(program, ifindex)
        if path.exists() and self._replace(path, prog_fd, ifindex):
            return
        kind = bpf.AttachType.TCX_INGRESS if program.hook is Hook.INGRESS else bpf.AttachType.TCX_EGRESS
        try:
            link = bpf.link_create_tcx(prog_fd, ifindex, kind)
        except OSError as error:
            raise DatapathError(f"cannot attach {program.name} to device {ifindex}: {_why(error)}") from error
        try:
            bpf.obj_pin(link, path)
        except OSError as error:
            raise DatapathError(f"cannot pin the link of {program.name} at {path}: {error.strerror}") from error
        finally:
            os.close(link)

    def detach(self, program: Program, ifindex: int) -> None:
        self._path(program, ifindex).unlink(missing_ok=True)

    def attached(self, program: Program) -> set[int]:
        """Also removes the pins of devices that have gone."""
        found: set[int] = set()
        for path in list(self._dir.glob(f"{program.name}_*")):
            ifindex = int(path.name.rpartition("_")[2])
            link = bpf.obj_get(path)
            try:
                alive = bpf.link_info(link).ifindex == ifindex
            finally:
                os.close(link)
            if alive:
                found.add(ifindex)
            else:
                path.unlink(missing_ok=True)
        return found

    def _path(self, program: Program, ifindex: int) -> Path:
        return self._dir / f"{program.name}_{ifindex}"

    def _replace(self, path: Path, prog_fd: int, ifindex: int) -> bool:
        """False if the link is dead: its device has gone, and another may have taken its number."""
        link = bpf.obj_get(path)
        try:
            if bpf.link_info(link).ifindex == ifindex:
                bpf.link_update(link, prog_fd)
                return True
        except OSError as error:
            if error.errno != errno.ENOLINK:
                raise DatapathError(f"cannot replace the program of {path.name}: {_why(error)}") from error
        finally:
            os.close(link)
        path.unlink()
        return False


class Clsact:
    """One filter for each device and hook, in direct-action mode, at a handle of our own."""

    _PRIORITY, _HANDLE = 1, 0x636D
    _PARENTS: ClassVar = {Hook.INGRESS: 0xFFFFFFF2, Hook.EGRESS: 0xFFFFFFF3}
    _ETH_P_ALL = 0x0003

    def attach(self, program: Program, prog_fd: int, ifindex: int) -> None:
        def change(route: Any) -> None:
            try:
                route.tc("add", "clsact", ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            route.tc(
                "replace-filter",
                "bpf",
                ifindex,
                self._HANDLE,
                fd=prog_fd,
                name=program.name,
                direct_action=True,
                **self._at(program.hook),
            )

        try:
            _with_route(change)
        except NetlinkError as error:
            raise DatapathError(f"cannot attach {program.name} to device {ifindex}: {_why(error)}") from error

    def detach(self, program: Program, ifindex: int) -> None:
        def change(route: Any) -> None:
            route.tc("del-filter", "bpf", ifindex, self._HANDLE, **self._at(program.hook))

        try:
            _with_route(change)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                raise DatapathError(f"cannot detach {program.name} from device {ifindex}: {_why(error)}") from error

    def attached(self, program: Program) -> set[int]:
        def read(route: Any) -> set[int]:
            found: set[int] = set()
            for link in route.get_links():
                for one in route.get_filters(index=link["index"], parent=self._PARENTS[program.hook]):
                    options = one.get_attr("TCA_OPTIONS")
                    if one["handle"] == self._HANDLE and options.get_attr("TCA_BPF_NAME") == program.name:
                        found.add(link["index"])
            return found

        result: set[int] = _with_route(read)
        return result

    def _at(self, hook: Hook) -> dict[str, int]:
        return {"parent": self._PARENTS[hook], "prio": self._PRIORITY, "protocol": self._ETH_P_ALL}


def _with_route(action: Any) -> Any:
    """Run on a netlink socket of its own thread: the synchronous API cannot run inside an event loop."""

    def run() -> Any:
        with IPRoute() as route:
            return action(route)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def _why(error: OSError | NetlinkError) -> str:
    code = error.errno if isinstance(error, OSError) else error.code
    if code == errno.ENODEV:
        return "no such device in this network namespace"
    if code in (errno.EPERM, errno.EACCES):
        return "not permitted; run as root (CAP_BPF and CAP_NET_ADMIN)"
    return os.strerror(code or 0)


def kernel_has_tcx(prog_fd: int) -> bool:
    """Kernels without TCX do not know the attach type; the others miss the device."""
    try:
        os.close(bpf.link_create_tcx(prog_fd, _NO_DEVICE, bpf.AttachType.TCX_INGRESS))
    except OSError as error:
        return error.errno == errno.ENODEV
    return True


def choose(wanted: Attachment, prog_fd: int, links_dir: Path) -> tuple[Attachment, Attacher]:
    """The way to attach, and its name. Raises DatapathError if TCX is demanded of a kernel without it."""
    if wanted == Attachment.CLSACT:
        return Attachment.CLSACT, Clsact()
    if kernel_has_tcx(prog_fd):
        return Attachment.TCX, Tcx(links_dir)
    if wanted == Attachment.TCX:
        raise DatapathError("this kernel has no TCX (it came with 6.6); use clsact")
    log.info("this kernel has no TCX; attaching by clsact")
    return Attachment.CLSACT, Clsact()
