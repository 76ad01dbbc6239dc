"""What of overlaybd layers and devices on the disk can be checked, and what is damaged of it."""

from __future__ import annotations

from pathlib import Path

from lamina.core.problem import Problem
from lamina.errors import DataLoss, FormatError, LaminaError
from lamina.snapshotters.erofs_check import PULL_AGAIN
from lamina.snapshotters.overlaybd.notes import DEVICE, LAYER, DeviceNote, LayerNote, read_note


def layer_problem(id: int, directory: Path) -> Problem | None:
    """Look whether what a layer's note names is there; None where it is, or there is no note."""
    from lamina.snapshotters.overlaybd.layers import KEPT

    try:
        note = read_note(directory, LAYER, LayerNote)
    except DataLoss as error:
        return Problem(str(id), str(error), PULL_AGAIN)
    if note is None or note.kind == "trace":
        return None
    path = directory / (note.file or KEPT)
    return None if path.exists() else Problem(str(id), f"{path} is gone", PULL_AGAIN)


def device_problem(id: int, directory: Path, cache: Path, *, deep: bool) -> Problem | None:
    """Look into the layers of a device, and for its cache; None where all is sound.

    Args:
        id: of the snapshot that has it.
        directory: the snapshot's.
        cache: the device's.
        deep: read their indexes, too.
    """
    from lamina.snapshotters.lazy_access import Access
    from lamina.snapshotters.overlaybd.device import opened_stack

    try:
        device = read_note(directory, DEVICE, DeviceNote)
    except DataLoss as error:
        return Problem(str(id), str(error), PULL_AGAIN)
    if not cache.is_dir():
        return Problem(str(id), f"the device {cache} is gone", PULL_AGAIN)
    if not deep or device is None:
        return None
    directories = [directory.with_name(str(one)) for one in device.layers]
    try:
        with opened_stack(directories, Access()):
            return None
    except (DataLoss, FormatError) as error:
        return Problem(str(id), str(error), PULL_AGAIN)
    except LaminaError:
        return None  # what is kept is not all of it, and the registry does not answer now
