"""`clustermesh testbed`: whole clusters on this machine, in network namespaces."""

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from clustermesh.cli.options import Settings, global_options
from clustermesh.output import Failure
from clustermesh.testbed import namespaces, netns, supervisor
from clustermesh.testbed.demo import Demo, DemoError
from clustermesh.testbed.down import all_names, destroy
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.machine import check_rights
from clustermesh.testbed.programs import agent_settings
from clustermesh.testbed.state import Record, StateDirectory
from clustermesh.testbed.supervisor import Request, Verb
from clustermesh.testbed.topology import Topology

_name = click.option("--name", default="default", show_default=True, metavar="NAME", help="Which testbed.")


class _Group(click.Group):
    """Turns what goes wrong with a testbed into exit status 1 and one message."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TestbedError as error:
            raise Failure(str(error)) from None


@click.group(cls=_Group)
def testbed() -> None:
    """Run whole clusters on this machine: nodes and pods are network namespaces. Needs root."""


@testbed.command("up")
@_name
@click.option("--clusters", default="red,green", show_default=True, metavar="NAMES", help="Comma separated.")
@click.option("--nodes", default=2, show_default=True, metavar="N", help="Nodes of each cluster.")
@click.option(
    "--apiservers", default=1, show_default=True, metavar="N", help="API servers of each cluster, of which one leads."
)
@global_options
def up_command(settings: Settings, name: str, clusters: str, nodes: int, apiservers: int) -> None:
    """Start clusters, each with etcd, Kubernetes API, clustermesh API server and an agent on every node."""
    # Dear to load, and the other commands do not need it.
    from clustermesh.testbed.up import up

    output = settings.output()
    begin = time.monotonic()
    names = [cluster.strip() for cluster in clusters.split(",")]
    fresh = asyncio.run(_until_told_to_end(up(name, names, nodes, output.good, api_servers=apiservers)))
    path = StateDirectory(name).kubeconfig
    if fresh:
        output.line(f"Testbed {name} is up in {time.monotonic() - begin:.1f} s. Contexts: {', '.join(names)}.")
        output.line(f"export KUBECONFIG={path}")
    else:
        output.line(f"Testbed {name} is up already.")
    output.document({"name": name, "created": fresh, "kubeconfig": str(path), "contexts": names})


@testbed.command()
@_name
@click.option("--all", "everything", is_flag=True, help="All testbeds of this machine.")
@global_options
def down(settings: Settings, name: str, everything: bool) -> None:
    """End a testbed and leave nothing of it, also after a crash."""
    check_rights()
    output = settings.output()
    removed = [each for each in (all_names() if everything else [name]) if destroy(each)]
    for each in removed:
        output.good(f"testbed {each} is gone")
    if not removed:
        output.line("There is no testbed." if everything else f"There is no testbed {name}.")
    output.document({"removed": removed})


@testbed.command()
@_name
@global_options
def status(settings: Settings, name: str) -> None:
    """Show nodes, processes and cut links."""
    output = settings.output()
    record, directory = _record(name), StateDirectory(name)
    topology = record.topology
    processes = supervisor.ask(directory.path, Request(Verb.STATUS))
    cuts = sorted(netns.NetnsDriver(topology).cuts())
    output.table(
        ("NODE", "ADDRESS", "PODS", "NAMESPACE"),
        [(node.name, node.address, node.pod_cidr, node.namespace) for node in topology.nodes],
    )
    output.line()
    output.table(
        ("PROCESS", "STATE", "PID", "FOR", "RESTARTS"),
        [
            (
                process.name,
                process.state,
                str(process.pid or "-"),
                f"{time.time() - process.since:.0f}s",
                str(process.restarts),
            )
            for process in processes
        ],
    )
    for one, other in cuts:
        output.warn(f"{one} and {other} are cut from each other: clustermesh testbed heal {one} {other}")
    output.document(
        {
            "name": name,
            "ready": record.ready,
            "kubeconfig": str(directory.kubeconfig),
            "clusters": topology.clusters,
            "processes": processes,
            "cuts": cuts,
        }
    )


@testbed.command("demo")
@_name
@click.option("--clusters", default="red,green", show_default=True, metavar="TWO", help="Comma separated.")
@click.option("--keep", is_flag=True, help="Leave the clusters up at the end.")
@global_options
def demo_command(settings: Settings, name: str, clusters: str, keep: bool) -> None:
    """Show the main job: two clusters come up, become one, survive faults and part again."""
    output = settings.output()
    names = [cluster.strip() for cluster in clusters.split(",")]
    if len(names) != 2:
        raise click.UsageError(f"the demo shows two clusters; --clusters names {len(names)}")
    check_rights()
    if StateDirectory(name).path.exists():
        raise TestbedError(
            f"there is a testbed {name!r} already, and the demo takes its own down at the end: "
            f"give another name (--name), or end that one with 'clustermesh testbed down --name {name}'"
        )
    show = Demo(name, names, heading=output.heading, say=output.line)
    try:
        show.run()
    except DemoError as error:
        raise Failure(f"the demo failed at «{show.steps[-1].title}»: {error}") from None
    finally:
        if not keep:
            show.down()
    output.heading("Summary")
    output.line(show.summary())
    output.document(show.steps)
    if keep:
        output.line(f"The clusters stay up: export KUBECONFIG={StateDirectory(name).kubeconfig}")


@testbed.command("exec", context_settings={"ignore_unknown_options": True})
@_name
@click.argument("where")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(name: str, where: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the network of WHERE: a node, or a pod as CLUSTER/[NAMESPACE/]POD. Put -- before COMMAND."""
    topology, directory = _record(name).topology, StateDirectory(name)
    environment = dict(os.environ)
    if "/" in where:
        namespace = _pod_namespace(directory, topology, where)
    else:
        node = topology.node(where)
        namespace = node.namespace
        settings = agent_settings(directory, topology.cluster(node.cluster), node)
        environment |= {f"CLUSTERMESH_{flag.replace('-', '_').upper()}": value for flag, value in settings.items()}
    argv = namespaces.entering(namespace, command)
    os.execvpe(argv[0], argv, environment)


@testbed.command()
@_name
@click.argument("process")
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows.")
def logs(name: str, process: str, follow: bool) -> None:
    """Print the log of PROCESS (red/etcd, red-1/agent, supervisor) or of a container, red/NAMESPACE/POD[/CONTAINER]."""
    _record(name)
    path = _log(StateDirectory(name), process)
    os.execvp("tail", ["tail", "-n", "+1", *(["-F"] if follow else []), str(path)])


@testbed.command()
@_name
@click.option("--content", is_flag=True, help="Print the file itself instead of its path.")
def kubeconfig(name: str, content: bool) -> None:
    """Print where the kubeconfig is; its contexts are named like the clusters."""
    _record(name)
    path = StateDirectory(name).kubeconfig
    click.echo(path.read_text() if content else str(path), nl=not content)


@testbed.command()
@_name
@click.option("--kill", "by_kill", is_flag=True, help="By SIGKILL instead of SIGTERM.")
@click.argument("process")
def stop(name: str, by_kill: bool, process: str) -> None:
    """End PROCESS and keep it down until start."""
    _ask(name, Verb.CRASH if by_kill else Verb.STOP, process)


@testbed.command()
@_name
@click.argument("process")
def start(name: str, process: str) -> None:
    """Start PROCESS again after stop."""
    _ask(name, Verb.START, process)


@testbed.command()
@_name
@click.argument("process")
def kill(name: str, process: str) -> None:
    """Let PROCESS crash (SIGKILL); it is started again like after any crash."""
    _ask(name, Verb.KILL, process)


@testbed.command()
@_name
@click.argument("one")
@click.argument("other")
def cut(name: str, one: str, other: str) -> None:
    """Part two clusters: no packet passes between their nodes."""
    netns.NetnsDriver(_record(name).topology).cut(one, other)


@testbed.command()
@_name
@click.argument("one")
@click.argument("other")
def heal(name: str, one: str, other: str) -> None:
    """Undo cut."""
    netns.NetnsDriver(_record(name).topology).heal(one, other)


async def _until_told_to_end(work: Coroutine[Any, Any, bool]) -> bool:
    """SIGTERM ends it like an interrupt does: it cleans up."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise TestbedError("interrupted; nothing is left of the attempt") from None


def _record(name: str) -> Record:
    check_rights()
    record = StateDirectory(name).load()
    if record is None:
        raise TestbedError(f"there is no testbed {name!r}: start it with 'clustermesh testbed up --name {name}'")
    return record


def _ask(name: str, verb: Verb, process: str) -> None:
    _record(name)
    supervisor.ask(StateDirectory(name).path, Request(verb, process))


def _pod_namespace(directory: StateDirectory, topology: Topology, where: str) -> str:
    cluster, *names = where.split("/")
    topology.cluster(cluster)
    if len(names) > 2:
        raise TestbedError(f"{where!r} is neither CLUSTER/POD nor CLUSTER/NAMESPACE/POD")
    namespace, pod = ("default", *names) if len(names) == 1 else names
    link = directory.pod(cluster, namespace, pod)
    if not link.exists():
        running = sorted(entry.name for entry in link.parent.glob("*")) if link.parent.is_dir() else []
        raise TestbedError(
            f"no pod {pod!r} runs in namespace {namespace!r} of {cluster}; there are: {', '.join(running) or 'none'}"
        )
    return link.readlink().name


def _log(directory: StateDirectory, process: str) -> Path:
    path = directory.log(process)
    if path.is_file():
        return path
    containers = sorted(path.with_suffix("").glob("*.log"))
    if len(containers) == 1:
        return containers[0]
    logs_home = directory.path / "logs"
    known = sorted(str(log.relative_to(logs_home).with_suffix("")) for log in logs_home.rglob("*.log"))
    raise TestbedError(f"no log of {process!r}; there are: {', '.join(known)}")
