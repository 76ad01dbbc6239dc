"""`lamina lazy`: what lazy layers have and have cost, and having more of them fetched."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Group, pass_app
from lamina.cli.lazy_shrink import SNAPSHOTTER, shrink
from lamina.cli.output import (
    always_json_option,
    binary_input,
    json_option,
    print_fields,
    print_json,
    print_table,
    printable,
    say,
)
from lamina.core.units import format_size

if TYPE_CHECKING:
    from lamina.lazy.picture import Cell, PlacedFile
    from lamina.lazy.view import LayerView
    from lamina.lazy_images import LazyImages, LazyLayer

_ROWS = 4
"""Most lines of a layer's picture."""
_SVG_CELLS = 400
_FILE = click.Path(path_type=Path, allow_dash=True)
_PLAIN = {"missing": ".", "unread": "+", "read": "#"}
_BLOCKS = {"missing": "\u2591", "unread": "\u2592", "read": "\u2588"}
_COLOURS = {"missing": "bright_black", "unread": "yellow", "read": "green"}
_LEGEND = {"missing": "not fetched", "unread": "fetched but unread", "read": "read"}


snapshotter_option = click.option(
    "--snapshotter",
    metavar="NAME",
    default=SNAPSHOTTER,
    show_default=True,
    help="Snapshotter that has the layers.",
)


@click.group(cls=Group, aliases={"list": "ls", "info": "show"})
def lazy() -> None:
    """Look at layers that are fetched when they are read, and have more fetched."""


lazy.add_command(shrink)


def _images(app: App, snapshotter: str) -> LazyImages:
    from lamina.lazy_images import LazyImages

    return LazyImages(app.store, snapshotter)


@lazy.command("ls")
@json_option
@snapshotter_option
@pass_app
def list_(app: App, as_json: bool, snapshotter: str) -> None:
    """List layers, and say why some are not lazy."""
    layers = _images(app, snapshotter).layers()
    if as_json:
        print_json([_plain(layer) for layer in layers])
        return
    columns = ("LAYER", "GATE", "LOCAL", "TOTAL", "IMAGES", "STATE")
    print_table(columns, map(_row, layers))


def _row(layer: LazyLayer) -> tuple[str, ...]:
    lazily = layer.state != "unpacked"
    sizes = (format_size(layer.local_bytes), format_size(layer.total_bytes))
    return (
        _short(layer),
        layer.gate or "-",
        *(sizes if lazily else ("-", "-")),
        ",".join(layer.images) or "-",
        _state(layer) if lazily else f"unpacked: {layer.reason.partition(' (')[0]}",
    )


def _short(layer: LazyLayer) -> str:
    return (layer.digest or layer.chain_id)[:19]


def _state(layer: LazyLayer) -> str:
    if not layer.reason:
        return layer.state
    soon = f" (again in {layer.resume_seconds:.0f} s)" if layer.state == "stopped" else ""
    return f"{layer.state}: {layer.reason}{soon}"


@lazy.command()
@json_option
@snapshotter_option
@click.argument("ref")
@pass_app
def show(app: App, as_json: bool, snapshotter: str, ref: str) -> None:
    """Show what each layer of an image has, and what it has cost."""
    layers = _images(app, snapshotter).layers(ref)
    if as_json:
        print_json([_plain(layer) for layer in layers])
        return
    for number, layer in enumerate(layers):
        if number:
            click.echo()
        print_fields(_fields(layer))


def _fields(layer: LazyLayer) -> list[tuple[str, str]]:
    head = [("layer", layer.digest or layer.chain_id), ("state", _state(layer))]
    if layer.state == "unpacked":
        return head
    cost = layer.cost
    waited = f"{_count(cost.fills, 'read')} waited {cost.wait_seconds:.2f} s in all"
    return [
        *head,
        ("gate", layer.gate or "-"),
        ("local", f"{format_size(layer.local_bytes)} of {format_size(layer.total_bytes)}"),
        ("fetched", f"{format_size(cost.fetched_bytes)} in {_count(cost.requests, 'request')}"),
        ("asked for", format_size(layer.asked_bytes)),
        ("waits", waited),
        ("failures", str(cost.failures)),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(layer: LazyLayer) -> dict[str, object]:
    cost = layer.cost
    return {
        "ChainID": layer.chain_id,
        "Digest": layer.digest,
        "Images": list(layer.images),
        "Gate": layer.gate,
        "State": layer.state,
        "Reason": layer.reason,
        "ResumeSeconds": layer.resume_seconds,
        "Local": layer.local_bytes,
        "Total": layer.total_bytes,
        "Asked": layer.asked_bytes,
        "Fetched": cost.fetched_bytes,
        "Requests": cost.requests,
        "Failures": cost.failures,
        "Waits": cost.fills,
        "WaitSeconds": cost.wait_seconds,
    }


def _plain_map(
    layer: LazyLayer, view: LayerView, files: Sequence[PlacedFile], count: int
) -> dict[str, object]:
    from lamina.lazy.picture import cells, files_read

    return {
        **_plain(layer),
        "Cells": [
            {"Start": c.start, "Stop": c.stop, "Missing": c.missing, "Unread": c.unread,
             "Read": c.read}
            for c in cells(view, count)
        ],
        "Files": [
            {"Path": f"/{_utf8(use.path)}", "Size": use.size, "Read": use.read}
            for use in files_read(view, files)
        ],
    }  # fmt: skip


def _utf8(path: str) -> str:
    """Escape bytes that are no UTF-8, which JSON cannot say."""
    return os.fsencode(path).decode(errors="backslashreplace")


@lazy.command("map")
@json_option
@snapshotter_option
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="Write a picture.")
@click.argument("ref")
@pass_app
def map_(app: App, as_json: bool, snapshotter: str, svg: Path | None, ref: str) -> None:
    """Draw what is there and what was read.

    And list the files that were read: how much of each, in the order of their first use.
    """
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else 80
    with _images(app, snapshotter).views(ref) as views:
        if svg is not None:
            from lamina.lazy.picture import cells
            from lamina.lazy.svg import Strip, draw

            strips = [Strip(_title(i), cells(v, _SVG_CELLS), files) for i, v, files, _ in views]
            svg.write_text(draw(ref, strips), encoding="utf-8")
        if as_json:
            print_json([_plain_map(*found[:3], width * _ROWS) for found in views])
        elif svg is None:
            for layer, view, files, _ in views:
                _draw(layer, view, files, width, is_terminal)
            signs = _BLOCKS if is_terminal else _PLAIN
            click.echo("  ".join(f"{signs[kind]} {text}" for kind, text in _LEGEND.items()))


def _title(layer: LazyLayer) -> str:
    there = f"{format_size(layer.local_bytes)} of {format_size(layer.total_bytes)} local"
    return f"{_short(layer)}  {there}, {format_size(layer.asked_bytes)} asked for"


def _draw(
    layer: LazyLayer,
    view: LayerView,
    files: Sequence[PlacedFile],
    width: int,
    is_terminal: bool,
) -> None:
    from lamina.lazy.picture import cells, files_read

    click.echo(printable(_title(layer)))
    found = cells(view, width * _ROWS)
    for start in range(0, len(found), width):
        click.echo("".join(_sign(cell, is_terminal) for cell in found[start : start + width]))
    for use in files_read(view, files):
        click.echo(f"  {format_size(use.read):>10} of {format_size(use.size):>10}  "
                   f"/{printable(use.path)}")  # fmt: skip
    click.echo()


def _sign(cell: Cell, is_terminal: bool) -> str:
    if not is_terminal:
        return _PLAIN[cell.kind]
    return click.style(_BLOCKS[cell.kind], fg=_COLOURS[cell.kind])


@lazy.command()
@always_json_option
@snapshotter_option
@click.argument("ref")
@pass_app
def trace(app: App, snapshotter: str, ref: str) -> None:
    """Print what was read, for `prefetch --trace`.

    A line of JSON for each lazy layer: its blob's digest, and the ranges of the blob in the order
    in which they were first read.
    """
    for layer in _images(app, snapshotter).trace(ref):
        click.echo(json.dumps(layer))


@lazy.command()
@snapshotter_option
@click.option(
    "--list", "paths", metavar="FILE", type=_FILE, help="Fetch the files first that a list names."
)
@click.option("--trace", "traced", metavar="FILE", type=_FILE,
              help="Fetch first what `lamina lazy trace` has printed.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Then fetch the rest too.")
@click.argument("ref")
@pass_app
def prefetch(
    app: App,
    snapshotter: str,
    paths: Path | None,
    traced: Path | None,
    everything: bool,
    ref: str,
) -> None:
    """Begin to fetch an image in the background.

    All of it, or what --list or --trace say: in their order, and before everything else. A list
    has a path on each line, from the root on. In it, * and ? stand for characters other than /,
    ** for any number of directories, and a directory means all that is below it.
    """
    images = _images(app, snapshotter)
    if paths is not None and traced is not None:
        raise click.UsageError("--list and --trace exclude each other")
    if paths is not None:
        from lamina.lazy.path_patterns import read_patterns

        patterns = read_patterns(_lines(paths))
        for pattern in images.prefetch_paths(ref, patterns, everything=everything):
            say(f"nothing in a lazy layer matches {pattern.text}")
    elif traced is not None:
        from lamina.lazy.blob_ranges import read_trace

        images.prefetch_trace(ref, read_trace(_lines(traced), str(traced)), everything=everything)
    else:
        images.prefetch(ref)


def _finite(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise click.BadParameter(f"{value} is no number of seconds", param=option)
    return value


@lazy.command()
@snapshotter_option
@click.option("--timeout", type=float, callback=_finite, metavar="SECONDS",
              help="Give up after so long.")  # fmt: skip
@click.argument("ref")
@pass_app
def wait(app: App, snapshotter: str, timeout: float | None, ref: str) -> None:
    """Fetch all of an image, and return when it is there.

    It survives a power loss then, and needs neither registry nor worker.
    """
    _images(app, snapshotter).wait(ref, timeout)


def _lines(file: Path) -> list[str]:
    """Return the lines of a file, or of standard input for `-`; a path may be no UTF-8."""
    raw = binary_input().read() if str(file) == "-" else file.read_bytes()
    return os.fsdecode(raw).split("\n")
