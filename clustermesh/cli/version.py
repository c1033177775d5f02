"""`clustermesh version`."""

import platform
from importlib import metadata

import click

from clustermesh.cli.options import Settings, global_options


@click.command()
@global_options
def version(settings: Settings) -> None:
    """Print the version."""
    own = metadata.version("clustermesh")
    output = settings.output()
    if output.is_json:
        output.document({"version": own, "python": platform.python_version()})
    else:
        output.line(f"clustermesh {own} (Python {platform.python_version()})")
