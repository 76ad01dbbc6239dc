"""`lamina lazy`: what lazy layers have and have cost, and having more of them fetched."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from lamina.cli.app import App, Group, pass_app, snapshotter_option
from lamina.cli.output import json_option, print_fields, print_json, print_table, printable, say
from lamina.core.units import format_size

if TYPE_CHECKING:
    from lamina.lazy.picture import Cell, PlacedFile
    from lamina.lazy.view import LayerView
    from lamina.lazy_images import LazyImages, LazyLayer

SNAPSHOTTER = "stargz"
_ROWS = 4
"""Most lines of a layer's picture."""
_SVG_CELLS = 400
_PLAIN = {"missing": ".", "unread": "+", "read": "#"}
_BLOCKS = {"missing": "\u2591", "unread": "\u2592", "read": "\u2588"}
_COLOURS = {"missing": "bright_black", "unread": "yellow", "read": "green"}
_LEGEND = {"missing": "not fetched", "unread": "fetched but unread", "read": "read"}


@click.group(cls=Group, aliases={"list": "ls"})
def lazy() -> None:
    """Look at layers that are fetched when they are read, and have more fetched."""


def _images(app: App, snapshotter: str | None) -> LazyImages:
    from lamina.lazy_images import LazyImages

    return LazyImages(app.store, snapshotter or SNAPSHOTTER)


@lazy.command("ls")
@json_option
@snapshotter_option
@pass_app
def list_(app: App, as_json: bool, snapshotter: str | None) -> None:
    """List layers: those that are lazy, and why the others are not."""
    layers = _images(app, snapshotter).layers()
    if as_json:
        print_json([_plain(layer) for layer in layers])
        return
    columns = ("LAYER", "GATE", "LOCAL", "TOTAL", "STATE", "IMAGES")
    print_table(columns, map(_row, layers))


def _row(layer: LazyLayer) -> tuple[str, ...]:
    lazily = layer.state != "unpacked"
    sizes = (format_size(layer.local_bytes), format_size(layer.total_bytes))
    return (
        _short(layer),
        layer.gate or "-",
        *(sizes if lazily else ("-", "-")),
        _state(layer),
        ",".join(layer.images) or "-",
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
def show(app: App, as_json: bool, snapshotter: str | None, ref: str) -> None:
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
    waits = f"{cost.fills} reads waited {cost.wait_seconds:.2f} s in all"
    return [
        *head,
        ("gate", layer.gate or "-"),
        ("local", f"{format_size(layer.local_bytes)} of {format_size(layer.total_bytes)}"),
        ("fetched", f"{format_size(cost.fetched_bytes)} in {cost.requests} requests"),
        ("asked for", format_size(layer.asked_bytes)),
        ("waits", waits),
        ("failures", str(cost.failures)),
    ]


def _plain(layer: LazyLayer) -> dict[str, object]:
    return {**asdict(layer), "images": list(layer.images), "cost": layer.cost._asdict()}


@lazy.command("map")
@json_option
@snapshotter_option
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="Write a picture.")
@click.argument("ref")
@pass_app
def map_(app: App, as_json: bool, snapshotter: str | None, svg: Path | None, ref: str) -> None:
    """Draw what of an image is there and what was read, and list the files that were read."""
    from lamina.lazy.picture import cells, files_read

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else 80
    with _images(app, snapshotter).views(ref) as views:
        if svg is not None:
            from lamina.lazy.svg import Strip, draw

            strips = [Strip(_title(i), cells(v, _SVG_CELLS), files) for i, v, files in views]
            svg.write_text(draw(ref, strips), encoding="utf-8")
        if as_json:
            print_json([
                {
                    **_plain(layer),
                    "cells": [cell._asdict() for cell in cells(view, width * _ROWS)],
                    "files": [use._asdict() for use in files_read(view, files)],
                }
                for layer, view, files in views
            ])  # fmt: skip
        elif svg is None:
            for layer, view, files in views:
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
@snapshotter_option
@click.argument("ref")
@pass_app
def trace(app: App, snapshotter: str | None, ref: str) -> None:
    """Print what was read of an image, for `prefetch --trace` here or elsewhere."""
    for layer in _images(app, snapshotter).trace(ref):
        click.echo(json.dumps(layer))


@lazy.command()
@snapshotter_option
@click.option("--list", "paths", metavar="FILE", type=click.File(), help="Fetch these files first.")
@click.option("--trace", "traced", metavar="FILE", type=click.File(),
              help="Fetch first what `lamina lazy trace` has printed.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Then fetch the rest too.")
@click.argument("ref")
@pass_app
def prefetch(
    app: App,
    snapshotter: str | None,
    paths: TextIO | None,
    traced: TextIO | None,
    everything: bool,
    ref: str,
) -> None:
    """Begin to fetch an image in the background: everything, or what --list or --trace say."""
    images = _images(app, snapshotter)
    if paths is not None and traced is not None:
        raise click.UsageError("--list and --trace exclude each other")
    if paths is not None:
        from lamina.lazy.path_patterns import read_patterns

        patterns = read_patterns(paths)
        for pattern in images.prefetch_paths(ref, patterns, everything=everything):
            say(f"nothing in a lazy layer matches {pattern.text}")
    elif traced is not None:
        from lamina.lazy_images import read_trace

        images.prefetch_trace(ref, read_trace(traced, traced.name), everything=everything)
    else:
        images.prefetch(ref)


@lazy.command()
@snapshotter_option
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long.")
@click.argument("ref")
@pass_app
def wait(app: App, snapshotter: str | None, timeout: float | None, ref: str) -> None:
    """Fetch all of an image, and return when it is there and survives a power loss."""
    _images(app, snapshotter).wait(ref, timeout)
