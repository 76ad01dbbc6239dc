"""Layers of devices that were unpacked as any layer is, to a directory with a few files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.formats.overlaybd.trace import NAME
from lamina.snapshotters.overlaybd.labels import (
    filesystem_in,
    is_acceleration,
    is_gzip_target,
    target_in,
)
from lamina.snapshotters.overlaybd.notes import LayerNote

if TYPE_CHECKING:
    from lamina.snapshotters.lazy_access import Access

_WHOLE = ("overlaybd.commit", "overlaybd.sealed")
"""Names of a layer that has its data."""
_TRACE = NAME.decode()
_METADATA = ".fs.meta"
"""Behind a filesystem's name: what a TurboOCI layer has of it."""


def note_of_files(files: Path, labels: Mapping[str, str], access: Access) -> LayerNote | None:
    """Return what a layer is, but for what lies below it; None for one that is a directory.

    Args:
        files: the directory that it was unpacked to.
        labels: of its snapshot.
        access: how to reach the registry that has the rest of it.

    Raises:
        FailedPrecondition: it is said to be a TurboOCI layer, and has no metadata.
        InvalidArgument: its labels do not say of which image it is.
        LaminaError: as the registry raises.
        OSError: it cannot be read.
    """
    names = sorted(path.name for path in files.iterdir())
    filesystem = filesystem_in(labels)
    if target_in(labels) is not None:
        return _turbo(files, names, labels, access)
    if is_acceleration(labels) and names == [_TRACE] and _is_file(files / _TRACE):
        return LayerNote("trace", (), filesystem, file=f"{files.name}/{_TRACE}")
    # Any other file beside it, and it is a directory in which somebody keeps such a layer.
    if len(names) == 1 and names[0] in _WHOLE and _is_layer(files / names[0]):
        return LayerNote("local", (), filesystem, file=f"{files.name}/{names[0]}")
    return None


def _turbo(files: Path, names: list[str], labels: Mapping[str, str], access: Access) -> LayerNote:
    from lamina.snapshotters.overlaybd.layers import GZIP_INDEX, noted_blob

    target = target_in(labels)
    found = next((name for name in names if name.endswith(_METADATA)), "")
    needed = [found, GZIP_INDEX] if is_gzip_target(labels) else [found]
    # A link would lead to files of the host, and whoever opens a pipe waits for ever.
    if target is None or not found or not all(_is_file(files / name) for name in needed):
        hint = f"it needs the files {', '.join([found or '*' + _METADATA, *needed[1:]])}"
        raise FailedPrecondition("find the metadata of TurboOCI layer", files, hint=hint)
    if not target.reference:
        hint = "pull it from its registry, with labels that name the image"
        raise InvalidArgument("find the image of TurboOCI layer", target.digest, hint=hint)
    return LayerNote(
        "turbo",
        (),
        found.removesuffix(_METADATA),
        file=f"{files.name}/{found}",
        blob=noted_blob(access, target),
        is_gzip=is_gzip_target(labels),
    )


def _is_layer(path: Path) -> bool:
    from lamina.snapshotters.overlaybd.layers import is_layer_file

    return _is_file(path) and is_layer_file(path)


def _is_file(path: Path) -> bool:
    """Tell whether there is a regular file, and no link to one."""
    return path.is_file() and not path.is_symlink()
