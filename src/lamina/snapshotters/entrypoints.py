"""Finds third parties' snapshotters: the entry point group `lamina.snapshotters`.

`importlib.metadata` does the same at ten times the cost, more than the rest of `lamina plugins ls`
together. Distributions inside zip files are not seen.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GROUP = "lamina.snapshotters"


def entry_points(path: Sequence[str] | None = None) -> Mapping[str, str]:
    """Return name -> `module:attribute` of every installed entry point of the group.

    Args:
        path: directories to search; by default `sys.path`. As with imports, what is found first
            on it wins.
    """
    return _found(tuple(sys.path if path is None else path))


@functools.cache
def _found(path: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in _metadata(path):
        for name, target in _group(text):
            found.setdefault(name, target)
    return found


def _metadata(path: tuple[str, ...]) -> Iterator[str]:
    """Yield the entry point file of every distribution that mentions the group."""
    seen: set[str] = set()
    for directory in path:
        for entry in _distributions(directory or "."):
            name = entry.name.split("-")[0].lower()
            if name in seen:
                continue
            seen.add(name)
            try:
                content = Path(entry.path, "entry_points.txt").read_bytes()
            except OSError:
                continue  # most distributions have none
            if GROUP.encode() in content:
                yield content.decode(errors="replace")


def _distributions(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return []  # sys.path may name zip files and directories that do not exist
    return sorted(found, key=lambda entry: entry.name)


def _group(text: str) -> Iterator[tuple[str, str]]:
    """Yield the group's entries of one file: an INI file without multi-line values."""
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            yield name.strip(), target.partition("[")[0].strip()
