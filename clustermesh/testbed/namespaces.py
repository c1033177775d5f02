"""Network namespaces by system call: create, enter, remove, as `ip netns` names them under /run/netns.

Entering is `setns(2)` in a thread of its own, or `nsenter --net` for a program: never `ip netns exec`, which also
remounts /sys and hides the BPF file system.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clustermesh.testbed.errors import TestbedError

RUN_NETNS = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 1 << 20
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    return RUN_NETNS / name


def named(prefix: str) -> list[str]:
    """The names of all namespaces that start with `prefix`."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(entry.name for entry in RUN_NETNS.iterdir() if entry.name.startswith(prefix))
    return []


def create(name: str, sysctls: Mapping[str, str] | None = None) -> None:
    """Make a namespace with its loopback up; `sysctls` are set under /proc/sys before any device comes.

    TestbedError when the name is taken or the kernel refuses.
    """
    target = path(name)
    try:
        _ensure_registry()
        target.touch(exist_ok=False)
    except FileExistsError:
        raise TestbedError(
            f"network namespace {name!r} exists already: remove it with 'ip netns delete {name}'"
        ) from None
    except OSError as error:
        raise _no_namespace(name, error) from error

    def unshare() -> None:
        _check(_LIBC.unshare(_CLONE_NEWNET), "unshare")
        for key, value in (sysctls or {}).items():
            (Path("/proc/sys") / key).write_text(value)
        mount("/proc/thread-self/ns/net", target, _MS_BIND)

    try:
        _in_thread(unshare)
        run(name, ["ip", "link", "set", "lo", "up"])
    except OSError as error:
        remove(name)
        raise _no_namespace(name, error) from error


def _no_namespace(name: str, error: OSError) -> TestbedError:
    return TestbedError(f"cannot create network namespace {name!r}: {error}; root with CAP_SYS_ADMIN is needed")


def remove(name: str) -> None:
    """Unmount and unlink; nothing happens when it is gone. The kernel ends it when its last process and socket do."""
    target = path(name)
    with contextlib.suppress(OSError):
        unmount(target)
    target.unlink(missing_ok=True)


def _ensure_registry() -> None:
    """Have /run/netns as `ip netns` makes it: a mount of its own that other mount namespaces see."""
    RUN_NETNS.mkdir(parents=True, exist_ok=True)
    try:
        mount("", RUN_NETNS, _MS_SHARED | _MS_REC)
    except OSError:
        mount(str(RUN_NETNS), RUN_NETNS, _MS_BIND | _MS_REC)
        mount("", RUN_NETNS, _MS_SHARED | _MS_REC)


def release_registry() -> None:
    """Undo the mount of /run/netns once the last namespace is gone; the kernel refuses while one is left."""
    with contextlib.suppress(OSError):
        if not any(RUN_NETNS.iterdir()):
            _check(_LIBC.umount2(os.fsencode(RUN_NETNS), 0), "umount")


def entering(name: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace; the process id is that of `argv`."""
    return ["nsenter", f"--net={path(name)}", "--", *argv]


def run(name: str | None, argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a program in a namespace (None: here) and return its output; TestbedError with its words if it fails."""
    command = list(argv) if name is None else entering(name, argv)
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        where = name or "the host"
        raise TestbedError(f"'{' '.join(argv)}' failed in {where}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def configure(name: str | None, commands: Iterable[str]) -> None:
    """Apply `ip` commands in one go."""
    run(name, ["ip", "-batch", "-"], stdin="".join(f"{command}\n" for command in commands))


def identity(name: str) -> tuple[int, int]:
    """Device and inode: what /proc/<pid>/ns/net of a process inside shows."""
    status = path(name).stat()
    return status.st_dev, status.st_ino


class SocketFactory:
    """Makes sockets that live in a namespace, by a helper thread that has entered it."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, f"netns-{name}", initializer=_enter, initargs=(name,))

    def tcp(self) -> socket.socket:
        return self._executor.submit(_tcp_socket).result()

    def close(self) -> None:
        self._executor.shutdown(wait=False)


def mount(source: str, target: Path, flags: int, kind: str = "none") -> None:
    """mount(2); OSError names the target."""
    result = _LIBC.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None)
    _check(result, str(target))


def unmount(target: Path) -> None:
    """Detach a mount even if something still uses it; OSError when there is none."""
    _check(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), str(target))


def _enter(name: str) -> None:
    with path(name).open() as handle:
        _check(_LIBC.setns(handle.fileno(), _CLONE_NEWNET), str(path(name)))


def _tcp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    return made


def _in_thread(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
