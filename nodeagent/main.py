"""`clustermesh-agent`: run the agent of a node, look into the node's kernel maps, clean up."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from pyroute2 import AsyncIPRoute

from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.output import Failure, Format, Output
from clustermesh.wire.identity import Numbering
from clustermesh.wire.names import check_cluster_name
from nodeagent import inspect as inspection
from nodeagent.agent import Agent, Settings
from nodeagent.datapath.abi import Config, ConfigFlag, Event, Map
from nodeagent.datapath.attach import Attachment
from nodeagent.datapath.datapath import Datapath
from nodeagent.datapath.errors import DatapathError
from nodeagent.datapath.maps import BpfMap, open_pinned
from nodeagent.datapath.ringbuf import RingBuffer
from nodeagent.devices import TUNNEL_PORT, DeviceError, remove_tunnel
from nodeagent.place import Place
from nodeagent.verify import verify

log = logging.getLogger(__name__)

PIN_DIR = Path("/sys/fs/bpf/clustermesh")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

pin_dir_option = click.option(
    "--pin-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="CLUSTERMESH_PIN_DIR",
    default=PIN_DIR,
    show_default=True,
    help="Directory on a BPF file system that holds maps and links [env: CLUSTERMESH_PIN_DIR].",
)


def node_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which node this is and how its cluster's etcd is reached."""

    def option(flag: str, **attributes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
        variable = f"CLUSTERMESH_{flag.removeprefix('--').replace('-', '_').upper()}"
        return click.option(flag, envvar=variable, show_envvar=True, **attributes)

    sizes = click.Choice(["255", "511"])
    for decorate in reversed(
        (
            option("--node-name", required=True, help="Name of this node in its cluster."),
            option("--cluster-name", required=True),
            option("--cluster-id", type=int, required=True),
            option("--max-connected-clusters", type=sizes, default="255", show_default=True),
            option("--etcd-endpoints", required=True, help="Of the own cluster: https://host:port, comma separated."),
            option("--etcd-ca", type=_FILE, required=True),
            option("--etcd-cert", type=_FILE, required=True),
            option("--etcd-key", type=_FILE, required=True),
        )
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """The node's part of the mesh.

    Exit status: 0 done, 1 failed, 2 wrong usage.
    """


@cli.command()
@node_options
@pin_dir_option
@click.option("--listen", default="127.0.0.1:9881", show_default=True, help="HOST:PORT for health and metrics.")
@click.option("--tunnel-port", type=click.IntRange(1, 65535), default=TUNNEL_PORT, show_default=True)
@click.option(
    "--attach",
    type=click.Choice([way.value for way in Attachment]),
    default=Attachment.AUTO.value,
    show_default=True,
    help="How programs are attached to devices.",
)
@click.option("--ipcache-size", type=click.IntRange(min=1024), help="Addresses that the ipcache can hold.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def run(**options: Any) -> None:
    """Serve this node until SIGTERM. What is in the kernel stays there."""
    _configure_logging(options["verbose"])
    try:
        settings = _settings(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        asyncio.run(_until_signalled(Agent(settings)))
    except* (DatapathError, DeviceError, OSError) as group:
        raise Failure(_first_line(group)) from group


@cli.command()
@click.argument("kind", type=click.Choice([*inspection.KINDS, "drops", "counters", "events"]))
@click.option("-o", "--output", type=click.Choice([form.value for form in Format]), default=Format.TABLE.value)
@pin_dir_option
@click.option("--follow", is_flag=True, help="events: go on until interrupted.")
@click.option("--trace", is_flag=True, help="events: also of packets that are forwarded, while this command runs.")
def inspect(kind: str, output: str, pin_dir: Path, *, follow: bool, trace: bool) -> None:
    """Show what this node's kernel maps hold. Needs no running agent."""
    out = Output(Format(output))
    try:
        if kind == "events":
            asyncio.run(_events(out, pin_dir, follow=follow, trace=trace))
        elif kind in ("drops", "counters"):
            _print(out, _counters(pin_dir, drops_only=kind == "drops"))
        else:
            _print(out, _rows(kind, pin_dir))
    except DatapathError as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        return


@cli.command("verify")
@node_options
@pin_dir_option
@click.option("--timeout", default=15.0, show_default=True, help="Seconds to wait for etcd.")
@click.option("-o", "--output", type=click.Choice([form.value for form in Format]), default=Format.TABLE.value)
def verify_command(output: str, timeout: float, pin_dir: Path, **options: Any) -> None:
    """Compare this node's kernel maps with a fresh compile of what etcd holds; exit status 1 if they differ.

    The agent may be running or not. A difference that lasts is worth a report: the agent's own audit repairs one
    within a minute.
    """
    out = Output(Format(output))
    try:
        place, connection = _place(options), _connection(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        differences = asyncio.run(verify(place, connection, pin_dir, timeout=timeout))
    except DatapathError as error:
        raise Failure(str(error)) from error
    if differences:
        columns = ("KIND", "ENTRY", "PROBLEM", "KERNEL", "WANTED")
        rows = [(d.kind, d.entry, d.problem, _brief(d.kernel), _brief(d.wanted)) for d in differences]
        out.table(columns, rows)
    else:
        out.good("the kernel holds what it should")
    out.document(differences)
    if differences:
        raise Failure(f"{len(differences)} entries of the kernel's maps are not as they should be")


@cli.command()
@pin_dir_option
def cleanup(pin_dir: Path) -> None:
    """Detach all programs, remove maps and the tunnel device. Traffic to other clusters ends."""
    try:
        asyncio.run(_cleanup(pin_dir))
    except DatapathError as error:
        raise Failure(str(error)) from error


def main() -> None:
    cli(prog_name="clustermesh-agent")


# run


def _settings(options: dict[str, Any]) -> Settings:
    """ValueError names the flag that makes no sense."""
    place = _place(options)
    host, _, port = options["listen"].rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"--listen must be HOST:PORT, not {options['listen']!r}")
    size = options["ipcache_size"]
    return Settings(
        place=place,
        etcd_endpoints=_endpoints(options),
        etcd_tls=_tls(options),
        pin_dir=options["pin_dir"],
        listen=(host.strip("[]"), int(port)),
        numbering=_numbering(options),
        tunnel_port=options["tunnel_port"],
        attachment=Attachment(options["attach"]),
        max_entries={Map.IPCACHE: size} if size else {},
    )


def _place(options: dict[str, Any]) -> Place:
    check_cluster_name(options["cluster_name"])
    _numbering(options).check_cluster_id(options["cluster_id"])
    return Place(options["node_name"], options["cluster_name"], options["cluster_id"])


def _numbering(options: dict[str, Any]) -> Numbering:
    return Numbering(int(options["max_connected_clusters"]))


def _endpoints(options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(filter(None, options["etcd_endpoints"].split(",")))


def _tls(options: dict[str, Any]) -> TlsFiles:
    return TlsFiles(options["etcd_ca"], options["etcd_cert"], options["etcd_key"])


def _connection(options: dict[str, Any]) -> Connection:
    return Connection(_endpoints(options), _tls(options))


async def _until_signalled(agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped; programs and maps stay in place")


def _configure_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _first_line(group: BaseExceptionGroup[Exception]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


# inspect


def _rows(kind: str, pin_dir: Path) -> list[inspection.Row]:
    maps = open_pinned(pin_dir)
    try:
        return list(inspection.KINDS[kind](maps))
    finally:
        _close(maps.values())


def _counters(pin_dir: Path, *, drops_only: bool) -> list[inspection.Row]:
    maps = open_pinned(pin_dir, [Map.METRICS])
    try:
        return list(inspection.counter_rows(_viewer(pin_dir, maps).counters(), drops_only=drops_only))
    finally:
        _close(maps.values())


async def _events(out: Output, pin_dir: Path, *, follow: bool, trace: bool) -> None:
    """What is in the ring now or, with `follow`, whatever comes. Events are consumed by whoever reads them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tracing must be switched off in any case
    maps = open_pinned(pin_dir, [Map.EVENTS, Map.CONFIG])
    try:
        if trace:
            _set_trace(maps[Map.CONFIG], on=True)
            click.echo("tracing until interrupted", err=True)
        if not follow:
            ring = RingBuffer(maps[Map.EVENTS].fd, maps[Map.EVENTS].info.max_entries)
            for raw in ring.read():
                _print_event(out, Event.unpack(raw))
            ring.close()
            return
        async for event in _viewer(pin_dir, maps).events():
            _print_event(out, event)
    finally:
        if trace:
            _set_trace(maps[Map.CONFIG], on=False)
        _close(maps.values())


def _print_event(out: Output, event: Event) -> None:
    row = inspection.event_row(event)
    if out.is_json:
        click.echo(msgspec.json.encode(row))  # one a line: there is no end to wait for
    else:
        out.line(_event_line(row))


def _viewer(pin_dir: Path, maps: dict[str, BpfMap]) -> Datapath:
    """The datapath as far as it can be read without loading it."""
    datapath = Datapath(pin_dir)
    datapath.maps = maps
    return datapath


def _set_trace(config: BpfMap, *, on: bool) -> None:
    raw = config.lookup(bytes(4))
    if raw is None:
        raise DatapathError("this node is not configured yet: start its agent")
    before = Config.unpack(raw)
    flags = before.flags | ConfigFlag.TRACE if on else before.flags & ~ConfigFlag.TRACE
    config.update(bytes(4), msgspec.structs.replace(before, flags=int(flags)).pack())


def _close(maps: Iterable[BpfMap]) -> None:
    for one in maps:
        one.close()


def _print(out: Output, rows: list[inspection.Row]) -> None:
    if out.is_json:
        out.document(rows)
    elif rows:
        out.table([column.replace("_", " ") for column in rows[0]], [[_cell(v) for v in row.values()] for row in rows])
    else:
        out.line("nothing")


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{item['address']} ({item['cluster_id']})" for item in value) or "none"
    return "-" if value is None else str(value)


def _event_line(row: inspection.Row) -> str:
    return (
        f"{row['time_s']:.6f} {row['type']} {row['reason']} at {row['point']}: {row['protocol']} "
        f"{row['source']} -> {row['destination']}, identity {row['identity']}, {row['length']} bytes"
        + (f", tunnel {row['outer']}" if row["outer"] else "")
    )


# verify


def _brief(values: inspection.Row | None) -> str:
    return "-" if values is None else " ".join(_cell(value) for value in list(values.values())[1:])


# cleanup


async def _cleanup(pin_dir: Path) -> None:
    if (pin_dir / "links").is_dir() or (pin_dir / "maps").is_dir():
        with Datapath(pin_dir) as datapath:
            datapath.remove()
    async with AsyncIPRoute() as netlink:
        await remove_tunnel(netlink)


if __name__ == "__main__":
    main()
