"""What a benchmark found, as JSON and as a table."""

import statistics
from collections.abc import Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table


class Result(msgspec.Struct, frozen=True):
    """One figure: measured, what it is held against in the same run, their ratio, and what is aimed at."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    spread: str = ""  # of the ratio (or value) over the rounds
    aim: str = ""
    reached: bool | None = None
    note: str = ""


def paired(name: str, ours: Sequence[float], plain: Sequence[float], unit: str, at_least: float | None) -> Result:
    """Ratio of two measurements taken in turn: the median of the pairs' ratios, since the machine's speed drifts."""
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    ratio = statistics.median(ratios)
    return Result(
        name=name,
        value=statistics.median(ours),
        unit=unit,
        baseline=statistics.median(plain),
        ratio=round(ratio, 3),
        spread=f"{min(ratios):.2f}–{max(ratios):.2f}",
        aim="" if at_least is None else f"≥ {at_least:.2f} ×",
        reached=None if at_least is None else ratio >= at_least,
    )


def show(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Print the table to standard error and return the JSON document."""
    table = Table(title="clustermesh bench")
    for column in ("figure", "value", "unit", "against", "ratio", "spread", "aim", "reached"):
        table.add_column(column, justify="left" if column in ("figure", "unit", "aim") else "right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.value:,.1f}",
            result.unit,
            "" if result.baseline is None else f"{result.baseline:,.1f}",
            "" if result.ratio is None else f"{result.ratio:.2f}",
            result.spread,
            result.aim,
            {None: "", True: "yes", False: "no"}[result.reached],
        )
    console = Console(stderr=True, width=130)
    console.print(table)
    for result in results:
        if result.note:
            console.print(f"{result.name}: {result.note}")
    document = {"facts": facts, "results": results}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
