"""The directories for temporary mounts: one for each process, `tmpmounts/TOKEN`.

What a killed process leaves mounted is known by its dead token (see `lamina.meta.owners`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lamina.errors import LaminaError
from lamina.meta.owners import Owners
from lamina.mount import unmount_recursive

log = logging.getLogger(__name__)


def abandoned_mounts(directory: Path, owners: Owners) -> Iterator[Path]:
    """Yield the directories whose processes have died."""
    return (path for path in directory.iterdir() if not owners.alive(path.name))


def sweep_mounts(directory: Path, owners: Owners) -> None:
    """Unmount and remove what dead processes left; what is still in use stays for next time."""
    for path in abandoned_mounts(directory, owners):
        try:
            remove_abandoned(path)
        except (LaminaError, OSError) as error:
            log.warning("an abandoned mount stays: %s", error, extra={"path": str(path)})


def remove_abandoned(path: Path) -> None:
    """Unmount and remove one; with rmdir, so that nothing is deleted through what is mounted."""
    if not path.is_dir():
        return
    unmount_recursive(path)
    for point in path.iterdir():
        point.rmdir()
    path.rmdir()
