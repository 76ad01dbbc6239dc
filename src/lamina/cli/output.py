"""Tables, aligned text and JSON in the shape in which `ctr` prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import BinaryIO

import click

from lamina.errors import InvalidArgument

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
always_json_option = click.option(
    "--json", is_flag=True, expose_value=False, hidden=True, help="Accepted: it is JSON anyway."
)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    min_width: int = 1,
    padding: int = 1,
) -> None:
    """Print a table as Go's tabwriter aligns it, the last column padded like the others."""
    cells = [[*map(printable, row), ""] for row in (columns, *rows)]
    print_aligned(cells, min_width=min_width, padding=padding)


def print_aligned(lines: Sequence[Sequence[str]], *, min_width: int = 1, padding: int = 1) -> None:
    """Print lines of cells as Go's tabwriter aligns them; a line's last cell is not padded.

    A column is a run of consecutive lines that have a cell there with another one after it, and
    every such run has a width of its own.
    """
    widths: list[list[int]] = [[] for _ in lines]
    for column in range(max(map(len, lines), default=1) - 1):
        inside = [len(cells) - 1 > column for cells in lines]
        for is_inside, run in groupby(range(len(lines)), inside.__getitem__):
            if is_inside:
                rows = list(run)
                widest = max(len(lines[row][column]) for row in rows)
                for row in rows:
                    widths[row].append(max(min_width, widest + padding))
    for cells, line_widths in zip(lines, widths, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(cells, line_widths, strict=False)]
        click.echo("".join((*padded, *cells[-1:])))


def print_fields(lines: Iterable[Sequence[str]]) -> None:
    """Print what is known of one thing, a name and its value on each line."""
    print_aligned([[printable(cell) for cell in line] for line in lines], padding=2)


def say(text: str) -> None:
    """Tell on stderr what is done, for people."""
    click.echo(printable(text), err=True)


def binary_output() -> BinaryIO:
    """Return standard output for bytes; raises InvalidArgument where it is closed."""
    if sys.stdout is None:
        raise InvalidArgument("write to standard output", hint="it is closed")
    return sys.stdout.buffer


def binary_input() -> BinaryIO:
    """Return standard input for bytes; raises InvalidArgument where it is closed."""
    if sys.stdin is None:
        raise InvalidArgument("read standard input", hint="it is closed")
    return sys.stdin.buffer


def printable(text: str) -> str:
    """Escape control characters, which would break the table or command the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: object) -> None:
    """Print a value of plain types as JSON, indented by four like ctr's."""
    import json  # only `--json` and the verbs that print JSON pay for it

    click.echo(json.dumps(value, indent=4, ensure_ascii=False))


def format_labels(labels: Mapping[str, str]) -> str:
    """Return labels as a table shows them: `a=1,b=2`, or `-` for none."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def print_labels(labels: Mapping[str, str], *, as_json: bool) -> None:
    """Print what labels there are after a change, as ctr does: one line, or JSON."""
    if as_json:
        print_json(dict(sorted(labels.items())))
    else:
        click.echo(printable(format_labels(labels) if labels else ""))


def format_time(ns: int) -> str:
    """Return a time in ns since the epoch as RFC 3339, in seconds."""
    from datetime import UTC, datetime  # most tables have no times

    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now() -> str:
    """Return the present time as RFC 3339, in seconds."""
    from time import time_ns

    return format_time(time_ns())
