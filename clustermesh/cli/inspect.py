"""`clustermesh inspect`: what a node has in its kernel maps, by the agent's own command on that node."""

import subprocess
import sys

import click

from clustermesh.cli.options import Settings, global_options
from clustermesh.output import Failure, Format

_AGENT = "nodeagent.main"  # run as a process: this command shares no code with the agent
_KINDS = ("nodes", "identities", "ipcache", "services", "endpoints", "drops", "counters", "events")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@global_options
def inspect(settings: Settings, kind: str, arguments: tuple[str, ...]) -> None:
    """Show what this node's kernel maps hold: run it on the node, as root.

    Further arguments go to `clustermesh-agent inspect`, such as --pin-dir DIR, or --follow and --trace for events.
    """
    command = [sys.executable, "-m", _AGENT, "inspect", kind, *arguments]
    if settings.format is Format.JSON:
        command += ["--output", Format.JSON.value]
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        status = 0
    except OSError as error:
        raise Failure(f"{sys.executable} cannot be run: {error.strerror}: run it as root") from None
    click.get_current_context().exit(status)
