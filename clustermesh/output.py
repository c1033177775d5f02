"""What a command prints: people read tables and lines, programs read one JSON document on stdout."""

import os
import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TextIO

import click
import msgspec


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


class Failure(click.ClickException):
    """The command did not do what was asked; exit status 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.format_message()}", err=True, file=file)


class Output:
    """Where a command prints to. With JSON, lines for people go to stderr, so that stdout stays one document."""

    def __init__(self, form: Format, *, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.format = form
        self._out = sys.stdout if out is None else out
        self._people = self._out if form is Format.TABLE else (sys.stderr if err is None else err)
        self._last_progress = ""
        self._open_line = False

    @property
    def is_json(self) -> bool:
        return self.format is Format.JSON

    def line(self, text: str = "") -> None:
        """A line for people."""
        self._finish_line()
        self._write(self._people, text + "\n")

    def heading(self, text: str) -> None:
        self.line()
        self.line(self._styled(f"■ {text}", "bright_blue"))

    def good(self, text: str) -> None:
        self.line(f"{self._styled('✓', 'green')} {text}")

    def bad(self, text: str) -> None:
        self.line(f"{self._styled('✗', 'red')} {text}")

    def warn(self, text: str) -> None:
        self.line(f"{self._styled('!', 'yellow')} {text}")

    def progress(self, text: str) -> None:
        """What is being waited for: one line that changes on a terminal, else a line whenever it changes."""
        if text == self._last_progress:
            return
        self._last_progress = text
        if self._people.isatty():
            # A line that wraps could not be taken back.
            shown = text[: max(20, shutil.get_terminal_size().columns - 4)]
            self._write(self._people, f"\r\x1b[2K… {shown}")
            self._open_line = True
        else:
            self._write(self._people, f"… {text}\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._finish_line()
        if self._people.isatty():
            self._rich_table(columns, rows)
            return
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        for row in (columns, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._write(self._people, "  ".join(cells).rstrip() + "\n")

    def document(self, value: Any) -> None:
        """The result for programs; nothing unless JSON was asked for."""
        if self.is_json:
            self._write(self._out, msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def _styled(self, text: str, colour: str) -> str:
        coloured = self._people.isatty() and "NO_COLOR" not in os.environ
        return click.style(text, fg=colour) if coloured else text

    def _finish_line(self) -> None:
        if self._open_line:
            self._write(self._people, "\r\x1b[2K")
            self._open_line = False

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self._people)
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()
