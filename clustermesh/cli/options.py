"""What every command understands, before or after its name."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from clustermesh.cilium.objects import NAMESPACE
from clustermesh.output import Format, Output

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Settings:
    """The global flags."""

    kubeconfig: Path | None = None
    context: str | None = None
    format: Format = Format.TABLE
    verbose: int = 0

    def output(self) -> Output:
        return Output(self.format)


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.option("-v", "--verbose", count=True, help="Log what happens to stderr; twice for more."),
        click.option(
            "-o", "--output", type=click.Choice([form.value for form in Format]), help="How to print [default: table]."
        ),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig [default: its current context]."),
        click.option(
            "--kubeconfig",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Kubeconfig file [default: $KUBECONFIG, else ~/.kube/config].",
        ),
    ):
        command = decorate(command)
    return command


def global_options(command: Callable[Concatenate[Settings, P], R]) -> Callable[P, R]:
    """Give a command (or the group) the global flags; it gets the merged Settings as its first argument."""

    @_flags
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        context = click.get_current_context()
        settings = merge(
            context.obj if isinstance(context.obj, Settings) else Settings(),
            kubeconfig=kwargs.pop("kubeconfig"),
            context=kwargs.pop("context"),
            output=kwargs.pop("output"),
            verbose=kwargs.pop("verbose"),
        )
        context.obj = settings
        _configure_logging(settings.verbose)
        return command(settings, *args, **kwargs)

    return wrapped


def timeout_option(default: float, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--timeout` in seconds, of commands that wait."""
    seconds = click.FloatRange(min=1, max=86400)
    return click.option("--timeout", type=seconds, default=default, show_default=True, metavar="SECONDS", help=text)


def cilium_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--cilium-namespace`, of commands that may meet a cluster with Cilium."""
    text = "Namespace of Cilium in clusters that run it instead of clustermesh."
    return click.option("--cilium-namespace", default=NAMESPACE, show_default=True, metavar="NAME", help=text)(command)


def merge(outer: Settings, *, kubeconfig: Any, context: Any, output: Any, verbose: Any) -> Settings:
    """Flags after the command's name win over those before it."""
    return replace(
        outer,
        kubeconfig=outer.kubeconfig if kubeconfig is None else kubeconfig,
        context=outer.context if context is None else context,
        format=outer.format if output is None else Format(output),
        verbose=max(outer.verbose, verbose),
    )


def _configure_logging(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
