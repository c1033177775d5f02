"""`clustermesh`: the operator's command. Each subcommand is one file, loaded only when it is used."""

import importlib
from dataclasses import dataclass

import click

from clustermesh.cli.options import Settings, global_options


@dataclass(frozen=True, slots=True)
class _Subcommand:
    module: str
    attribute: str
    help: str


_SUBCOMMANDS = {
    "connect": _Subcommand(
        "clustermesh.cli.connect", "connect", "Join clusters to this one and wait until they are one."
    ),
    "disconnect": _Subcommand("clustermesh.cli.disconnect", "disconnect", "Undo connect, on both sides."),
    "inspect": _Subcommand("clustermesh.cli.inspect", "inspect", "Show what a node has in its kernel maps."),
    "status": _Subcommand("clustermesh.cli.status", "status", "Show what is applied of each peer."),
    "testbed": _Subcommand("clustermesh.cli.testbed", "testbed", "Run whole clusters on this machine."),
    "version": _Subcommand("clustermesh.cli.version", "version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = _SUBCOMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in sorted(_SUBCOMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@global_options
def cli(settings: Settings) -> None:
    """Kubernetes clusters that act as one network.

    Exit status: 0 done, 1 failed, 2 wrong usage.
    """


def main() -> None:
    cli(prog_name="clustermesh")


if __name__ == "__main__":
    main()
