"""Layers of devices that were unpacked as any layer is, to a directory with a few files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lamina.snapshotters.overlaybd.labels import filesystem_in, is_acceleration
from lamina.snapshotters.overlaybd.notes import LayerNote

COMMIT = "overlaybd.commit"
_FILES = (COMMIT, "overlaybd.sealed")
TRACE = "trace"


def note_of_files(files: Path, labels: Mapping[str, str]) -> LayerNote | None:
    """Return what a layer is, but for what lies below it; None for one that is a directory.

    Args:
        files: the directory that it was unpacked to.
        labels: of its snapshot.

    Raises:
        OSError: it cannot be read.
    """
    from lamina.snapshotters.overlaybd.layers import is_layer_file

    filesystem = filesystem_in(labels)
    names = [path.name for path in files.iterdir()]
    if is_acceleration(labels) and names == [TRACE]:
        return LayerNote("trace", (), filesystem, file=f"{files.name}/{TRACE}")
    # Any other file beside it, and it is a directory in which somebody keeps such a layer.
    if len(names) == 1 and names[0] in _FILES and is_layer_file(files / names[0]):
        return LayerNote("local", (), filesystem, file=f"{files.name}/{names[0]}")
    return None
