"""Pictures of layers as one SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import islice
from typing import NamedTuple

from lamina.lazy.picture import Cell, PlacedFile, names_in

_WIDTH, _HEIGHT, _TEXT, _GAP, _MARGIN = 1000, 24, 18, 14, 10
_NAMES = 12
"""Most files that a cell names."""
_COLOURS = {"missing": "#d8d8d8", "unread": "#e8b84a", "read": "#2e8b57"}
_LEGEND = (("missing", "not fetched"), ("unread", "fetched but unread"), ("read", "read"))


class Strip(NamedTuple):
    """One layer.

    Attributes:
        title: what is written above it.
        cells: of the layer.
        files: of the layer, by ascending `start`.
    """

    title: str
    cells: Sequence[Cell]
    files: Sequence[PlacedFile]


def draw(title: str, strips: Sequence[Strip]) -> str:
    """Return an SVG with a strip for each layer; what the mouse is on names its files."""
    row = _TEXT + _HEIGHT + _GAP
    height = 2 * _MARGIN + 2 * _TEXT + row * len(strips)
    width = _WIDTH + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f"<title>{text(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    top = _MARGIN
    for strip in strips:
        parts += _strip(strip, top)
        top += row
    left = _MARGIN
    for kind, label in _LEGEND:
        parts.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{left + 18}" y="{top + 11}">{text(label)}</text>')
        left += 160
    return "\n".join([*parts, "</svg>", ""])


def text(value: str) -> str:
    """Return text for XML, which has no other way to say most control characters."""
    safe = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in value
    )
    return escape(safe)


def _strip(strip: Strip, top: int) -> list[str]:
    parts = [f'<text x="{_MARGIN}" y="{top + 12}">{text(strip.title)}</text>']
    starts = [file.start for file in strip.files]
    for index, cell in enumerate(strip.cells):
        left = _MARGIN + _WIDTH * index / len(strip.cells)
        parts.append(
            f'<rect x="{left:.2f}" y="{top + _TEXT}" width="{_WIDTH / len(strip.cells):.2f}"'
            f' height="{_HEIGHT}" fill="{_COLOURS[cell.kind]}">'
            f"<title>{text(_hover(cell, strip.files, starts))}</title></rect>"
        )
    return parts


def _hover(cell: Cell, files: Sequence[PlacedFile], starts: Sequence[int]) -> str:
    names = [f"/{name}" for name in islice(names_in(cell, files, starts), _NAMES + 1)]
    if len(names) > _NAMES:
        names[_NAMES] = "and more"
    head = f"bytes {cell.start} to {cell.stop}: {cell.read} read, {cell.unread} unread,"
    return "\n".join([f"{head} {cell.missing} not fetched", *names])
